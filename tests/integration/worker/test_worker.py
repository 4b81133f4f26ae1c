"""A real worker: containers, their network, their logs, over a kill of the worker itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from pathlib import Path

import grpc
import pytest

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.model.enums import NodeRole
from shoal.model.enums import TaskState as S
from shoal.model.specs import NodeSpec
from shoal.model.types import Mount, NodeCertificate, Privileges
from shoal.security.grpc_tls import local_channel
from tests.integration.worker.place import Place, a_task, task_id

pytestmark = pytest.mark.root

COUNT = "trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done"
WAIT = "while [ ! -e /sig/go ]; do sleep 0.02; done; echo bye; echo last words >&2; exit 9"


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_tasks_outlive_a_killed_worker_and_are_reported_truly(place: Place) -> None:
    signals = place.directory / "sig"
    signals.mkdir()
    mount = Mount(source=str(signals), target="/sig", read_only=True)
    wanted = [a_task(1, COUNT), a_task(2, WAIT, mounts=(mount,))]
    place.manager.stream.send(*wanted)
    running = await place.reach(1, S.RUNNING)
    ending = await place.reach(2, S.RUNNING)
    assert running.address.startswith("10.241.")
    assert is_alive(running.container.pid)
    assert sorted(place.namespaces()) == [task_id(1), task_id(2)]

    place.kill_worker()
    (signals / "go").touch()
    await place.until(lambda: not is_alive(ending.container.pid))
    assert is_alive(running.container.pid)
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(*wanted)

    adopted = await place.reach(1, S.RUNNING)
    assert adopted.container.pid == running.container.pid
    assert adopted.container.container_id == running.container.container_id
    assert adopted.address == running.address
    ended = await place.reach(2, S.FAILED)
    assert ended.container.exit_code == 9
    assert ended.error == "task: non-zero exit (9)"
    await place.until(lambda: place.namespaces() == [task_id(1)])

    place.manager.ask_logs(task_id(1), task_id(2))
    await place.until(lambda: place.manager.published_to_end)
    lines = place.manager.lines
    assert [line.timestamp_ns for line in lines] == sorted(line.timestamp_ns for line in lines)
    counted = [line.data.decode() for line in lines if line.context.task_id == task_id(1)]
    assert counted == [f"line {number}\n" for number in range(1, len(counted) + 1)]
    said = {(line.stream, line.data) for line in lines if line.context.task_id == task_id(2)}
    assert said == {(1, b"bye\n"), (2, b"last words\n")}

    place.manager.stream.send(a_task(1, COUNT, desired=S.SHUTDOWN))
    assert (await place.reach(1, S.SHUTDOWN)).container.exit_code == 7
    place.manager.stream.send(removed=[task_id(1), task_id(2)])
    await place.until(lambda: not place.containers())
    await place.until(lambda: not os.listdir(place.paths.worker / "tasks"))
    assert place.namespaces() == []


async def test_a_worker_that_stops_in_order_leaves_its_containers(place: Place) -> None:
    place.manager.stream.send(a_task(1, COUNT))
    running = await place.reach(1, S.RUNNING)
    assert await place.stop_worker() == 0
    assert place.manager.closed == [place.manager.sessions[-1]]
    assert is_alive(running.container.pid)
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(a_task(1, COUNT))
    assert (await place.reach(1, S.RUNNING)).container.pid == running.container.pid


async def test_a_full_disk_while_preparing_rejects_and_leaves_nothing(place: Place) -> None:
    assert await place.stop_worker() == 0
    await end_runtime(place)
    place.mount_small(place.paths.worker, 8 << 20)
    await place.start_worker()
    place.manager.stream.send()
    filler = place.paths.worker / "filler"
    fill_up(filler)
    place.manager.stream.send(a_task(1, COUNT))
    status = await place.reach(1, S.REJECTED)
    assert "No space left on device" in status.error
    assert not place.containers()
    assert not os.listdir(place.paths.worker / "trash")
    await place.until(lambda: not place.namespaces())
    assert not list((place.paths.worker / "tasks").glob("*.tmp"))
    filler.unlink()
    place.manager.stream.send(a_task(2, COUNT))
    await place.reach(2, S.RUNNING)


def fill_up(filler: Path) -> None:
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


async def end_runtime(place: Place) -> None:
    """The keeper holds files below the worker's directory open: it must go before a mount."""
    pid = int((place.paths.run / "keeper.pid").read_text().split()[0])
    os.kill(pid, signal.SIGTERM)
    await place.until(lambda: not is_alive(pid))


async def test_a_host_port_in_use_rejects_and_our_own_does_not_count(place: Place) -> None:
    program = (
        "import socket,time; s=socket.create_server(('', 8080)); print(1, flush=True); s.accept()"
    )
    listener = subprocess.Popen(place.inside("python3", "-c", program), stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None
        listener.stdout.readline()
        place.manager.stream.send(a_task(1, COUNT, host_port=8080))
        status = await place.reach(1, S.REJECTED)
        assert status.error == "port 8080/tcp is in use by another process on this node"
        assert "RUNNING" not in {s.state.name for t, s in place.manager.history if t == task_id(1)}
    finally:
        listener.kill()
        listener.wait()
        listener.stdout.close()
    place.manager.stream.send(a_task(2, COUNT, host_port=8080))
    first = await place.reach(2, S.RUNNING)
    assert [port.published_port for port in first.port_status.ports] == [8080]
    port = pb.PublishedPort(
        protocol=0, published_port=8080, target_port=80, publish_mode=1, service_id="service1",
        addresses=[first.address],
    )  # fmt: skip
    place.manager.stream.send(ports=[port], version=9)
    await place.until(lambda: (9, {}) in place.manager.acknowledged)
    place.manager.stream.send(a_task(3, COUNT, host_port=8080), version=9)
    await place.reach(3, S.RUNNING)


async def test_an_image_in_use_is_protected_even_under_another_name(place: Place) -> None:
    old = await place.import_image("web", marker="old")
    place.manager.stream.send(a_task(1, COUNT, image="web"))
    await place.reach(1, S.RUNNING)
    new = await place.import_image("web", marker="new")
    assert new != old

    def remove() -> object:
        return place.call(
            node_pb2_grpc.ImagesStub, "RemoveImage", node_pb2.RemoveImageRequest(image=old)
        )

    with pytest.raises(grpc.aio.AioRpcError, match="image is being used by running container"):
        await remove()
    place.manager.stream.send(removed=[task_id(1)])
    await place.until(lambda: not place.containers())
    answer = await remove()
    assert old in answer.deleted


async def test_an_image_that_is_not_here_rejects(place: Place) -> None:
    place.manager.stream.send(a_task(1, COUNT, image="nowhere"))
    error = (await place.reach(1, S.REJECTED)).error
    assert error.startswith('No such image: nowhere:latest: Get "https://')  # nobody has it


async def test_leaving_removes_everything(place: Place) -> None:
    place.manager.stream.send(a_task(1, COUNT), a_task(2, "trap '' TERM; sleep 1000"))
    first, second = await place.reach(1, S.RUNNING), await place.reach(2, S.RUNNING)
    place.manager.stream.send(a_task(2, "", desired=S.SHUTDOWN, stop_grace_period_ns=0))
    await place.call(node_pb2_grpc.WorkerControlStub, "RemoveTasks", node_pb2.RemoveTasksRequest())
    assert not is_alive(first.container.pid)
    assert not is_alive(second.container.pid)
    assert place.containers() == []
    assert not os.listdir(place.paths.worker / "tasks")
    assert not (place.paths.worker / "network.json").exists()
    links = subprocess.run(
        place.inside("ip", "-o", "link"), check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[1] for line in links.splitlines()] == ["lo:"]


async def test_metrics_show_the_running_containers(place: Place) -> None:
    place.manager.stream.send(a_task(1, COUNT))
    await place.reach(1, S.RUNNING)
    answer = await place.call(
        node_pb2_grpc.TelemetryStub, "GetMetrics", node_pb2.GetMetricsRequest()
    )
    page = answer.text.decode()
    assert "container_processes{" in page
    assert f'id="/shoal/{task_id(1)}"' in page
    assert "_created" not in page
    ready = await place.call(
        node_pb2_grpc.TelemetryStub, "GetReadiness", node_pb2.GetReadinessRequest()
    )
    assert (ready.ready, ready.reason) == (True, "")


async def test_a_container_whose_network_went_while_the_worker_was_down(place: Place) -> None:
    place.manager.stream.send(a_task(1, COUNT), a_task(2, COUNT))
    lost, kept = await place.reach(1, S.RUNNING), await place.reach(2, S.RUNNING)
    place.kill_worker()
    subprocess.run(["umount", "-l", str(place.paths.run / "netns" / task_id(1))], check=True)
    await place.start_worker()
    place.manager.stream.send(a_task(1, COUNT), a_task(2, COUNT))
    status = await place.reach(1, S.FAILED)
    assert "network is lost" in status.error
    assert not is_alive(lost.container.pid)
    assert is_alive(kept.container.pid)


async def test_a_renewed_certificate_is_used_from_the_next_connection_on(place: Place) -> None:
    renewed = place.renew_identity()
    await place.call(
        node_pb2_grpc.WorkerControlStub, "ReloadIdentity", node_pb2.ReloadIdentityRequest()
    )
    assert renewed not in place.manager.peer_certificates
    place.manager.end_sessions()
    await place.until(lambda: len(place.manager.streams) == 2)
    assert place.manager.peer_certificates[-1] == renewed


async def test_swarmd_hears_what_the_managers_say_of_the_node(place: Place) -> None:
    heard: list[node_pb2.MembershipNews] = []

    async def listen() -> None:
        async with local_channel(place.paths.worker_socket) as channel:
            stub = node_pb2_grpc.WorkerControlStub(channel)
            async for news in stub.WatchMembership(node_pb2.WatchMembershipRequest()):
                heard.append(news)  # noqa: PERF401 - each as it comes

    listening = asyncio.create_task(listen())
    try:
        await place.until(lambda: len(heard) == 1)
        assert heard[0] == node_pb2.MembershipNews()
        place.manager.node_spec = NodeSpec(desired_role=NodeRole.MANAGER)
        place.manager.node_certificate = NodeCertificate(renew=True)
        place.manager.managers = (place.manager.address,)
        place.manager.root_ca = b"roots"
        place.manager.end_sessions()
        await place.until(lambda: len(heard) == 2)
        assert heard[1] == node_pb2.MembershipNews(
            desired_role=1,
            managers=[place.manager.address],
            root_ca=b"roots",
            renew_certificate=True,
        )
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def test_a_terminal_an_init_and_no_filter_where_they_are_asked_for(place: Place) -> None:
    found = place.directory / "found"
    found.mkdir()
    mount = Mount(source=str(found), target="/found")
    look = (
        "[ -t 0 ] && [ -t 1 ] && echo $TERM > /found/terminal; echo $$ > /found/pid;"
        " grep Seccomp: /proc/self/status > /found/seccomp;"
        f" touch /found/done; {COUNT}"
    )
    asked = Privileges(seccomp_mode="unconfined", apparmor_mode="disabled")
    place.manager.stream.send(
        a_task(1, look, mounts=(mount,), tty=True, init=True, privileges=asked)
    )
    await place.reach(1, S.RUNNING)
    await place.until(lambda: (found / "done").exists())
    assert (found / "terminal").read_text() == "xterm\n"
    assert int((found / "pid").read_text()) > 1
    assert (found / "seccomp").read_text().split() == ["Seccomp:", "0"]
    place.manager.stream.send(a_task(1, COUNT, desired=S.SHUTDOWN))
    assert (await place.reach(1, S.SHUTDOWN)).container.exit_code == 7
