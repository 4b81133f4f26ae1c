"""Tasks of a real worker on overlay networks: by name and address, over a kill, until the end."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import dns.message
import pytest

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.model.enums import TaskState as S
from shoal.model.objects import Task
from shoal.model.types import NetworkAttachment
from tests.integration.worker.place import DEADLINE_S, Place, a_task, task_id
from worker.network import netns

pytestmark = pytest.mark.root

SERVE = "hostname > /tmp/marker; trap 'exit 0' TERM; httpd -f -p 80 -h /tmp & wait"
REST = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
NODE = "n" * 25
NETWORK = pb.OverlayNetwork(
    network_id="net1",
    name="back",
    vni=4096,
    subnets=[pb.OverlaySubnet(subnet="10.5.0.0/24", gateway="10.5.0.1")],
)
SERVICE = pb.OverlayService(
    network_id="net1", service_id="service1", name="front", virtual_ips=["10.5.0.2"]
)
SELF = pb.PeerNode(node_id=NODE, index=1, address="198.51.100.1", subnet="10.241.0.0/22")


def on_network(number: int, script: str, **changes: object) -> Task:
    link = NetworkAttachment(network_id="net1", addresses=(f"10.5.0.{10 + number}/24",))
    return a_task(number, script, **changes).replaced(networks=(link,))


def change(*, remove: bool = False, **item: object) -> pb.AssignmentChange:
    return pb.AssignmentChange(assignment=pb.Assignment(**item), remove=remove)


def endpoint(number: int, *, service: str = "", ready: bool = True) -> pb.AssignmentChange:
    return change(
        overlay_endpoint=pb.OverlayEndpoint(
            network_id="net1",
            task_id=task_id(number),
            service_id=service,
            node_id=NODE,
            addresses=[f"10.5.0.{10 + number}"],
            names=[f"task.{number}"],
            ready=ready,
        )
    )


def everything() -> list[pb.AssignmentChange]:
    return [
        change(network=NETWORK),
        change(overlay_service=SERVICE),
        endpoint(1, service="service1"),
        endpoint(2, service="service1"),
        endpoint(3),
    ]


def run_in(pid: int, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["nsenter", "-t", str(pid), "--net", "--mount", "--root", "/bin/busybox", *command],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def look_up(pid: int, name: str) -> list[str]:
    """IPv4 addresses, as the task's resolver knows them."""
    query = dns.message.make_query(name, "A")
    with netns.entered(Path(f"/proc/{pid}/ns/net")), socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect(("127.0.0.11", 53))
        sock.send(query.to_wire())
        reply = dns.message.from_wire(sock.recv(4096))
    return sorted(item.to_text() for answer in reply.answer for item in answer)


def fetched(pid: int, address: str) -> str:
    """The page of a server, asked from within a task's network."""
    with (
        netns.entered(Path(f"/proc/{pid}/ns/net")),
        socket.create_connection((address, 80), timeout=5) as connection,
    ):
        connection.sendall(b"GET /marker HTTP/1.0\r\n\r\n")
        return connection.makefile().read().rpartition("\n\n")[2].strip()


def answers(pid: int, address: str) -> bool:
    try:
        return bool(fetched(pid, address))
    except OSError:
        return False


async def test_tasks_find_each_other_by_name_over_a_kill_of_the_worker(place: Place) -> None:
    both = {task_id(1)[:12], task_id(2)[:12]}
    tasks = [on_network(1, SERVE), on_network(2, SERVE), on_network(3, REST)]
    place.manager.stream.send(*tasks, peers=[SELF], overlays=everything(), version=3)
    statuses = [await place.reach(number, S.RUNNING) for number in (1, 2, 3)]
    asking = statuses[2].container.pid
    await place.until(lambda: place.manager.acknowledged[-1:] == [(3, {})])
    await place.until(lambda: answers(asking, "10.5.0.11") and answers(asking, "10.5.0.12"))
    assert look_up(asking, "front") == ["10.5.0.2"]
    assert look_up(asking, "tasks.front") == ["10.5.0.11", "10.5.0.12"]
    assert look_up(asking, "task.3") == ["10.5.0.13"]
    assert {fetched(asking, "10.5.0.2") for _ in range(40)} == both
    hosts = run_in(asking, "cat", "/etc/hosts").stdout
    assert f"10.5.0.13\t{task_id(3)[:12]}" in hosts
    assert run_in(asking, "cat", "/etc/resolv.conf").stdout.splitlines()[-2:] == [
        "nameserver 127.0.0.11",
        "options ndots:0",
    ]
    assert "10.5.0.12" in run_in(asking, "nslookup", "task.2").stdout

    place.kill_worker()
    assert {fetched(asking, "10.5.0.2") for _ in range(40)} == both
    assert look_up(asking, "front") == ["10.5.0.2"]
    place.manager.statuses.clear()
    await place.start_worker()
    place.manager.stream.send(*tasks, peers=[SELF], overlays=everything(), version=4)
    again = [await place.reach(number, S.RUNNING) for number in (1, 2, 3)]
    assert [one.container.pid for one in again] == [one.container.pid for one in statuses]
    await place.until(lambda: place.manager.acknowledged[-1:] == [(4, {})])
    assert {fetched(asking, "10.5.0.2") for _ in range(40)} == both

    gone = [endpoint(1, service="service1", ready=False)]
    gone += [endpoint(2, service="service1", ready=False)]
    place.manager.stream.send(overlays=gone, version=5)
    await place.until(lambda: place.manager.acknowledged[-1:] == [(5, {})])
    with pytest.raises(ConnectionRefusedError):
        fetched(asking, "10.5.0.2")
    assert look_up(asking, "tasks.front") == []
    assert answers(asking, "10.5.0.11")  # by its address it is there until it ends

    place.manager.stream.send(removed=[task_id(1), task_id(2)], version=6)
    place.manager.stream.send(
        overlays=[
            pb.AssignmentChange(assignment=one.assignment, remove=True) for one in everything()[2:4]
        ],
        version=7,
    )
    await place.until(lambda: place.namespaces() == [task_id(3)])
    assert not answers(asking, "10.5.0.11")

    overlay = place.paths.run / "overlay"
    resolver = int((overlay / "resolver.pid").read_text())
    await place.call(node_pb2_grpc.WorkerControlStub, "RemoveTasks", node_pb2.RemoveTasksRequest())
    assert not (overlay / "netns").exists()
    await place.until(lambda: not Path(f"/proc/{resolver}").exists())


async def test_a_task_whose_network_cannot_be_built_is_rejected_with_the_reason(
    place: Place,
) -> None:
    wrong = pb.OverlayNetwork()
    wrong.CopyFrom(NETWORK)
    wrong.vni = 5377
    place.manager.stream.send(
        on_network(1, REST), peers=[SELF], overlays=[change(network=wrong), endpoint(1)], version=2
    )
    assert "5377 is the ingress network's" in (await place.reach(1, S.REJECTED)).error
    await place.until(lambda: place.manager.acknowledged[-1:] == [(2, {})])
    await place.until(lambda: place.namespaces() == [])  # given back after the report


async def test_a_task_whose_interface_is_gone_fails_when_the_worker_comes_back(
    place: Place,
) -> None:
    place.manager.stream.send(
        on_network(1, REST), peers=[SELF], overlays=[change(network=NETWORK), endpoint(1)]
    )
    pid = (await place.reach(1, S.RUNNING)).container.pid
    place.kill_worker()
    run_in(pid, "ip", "link", "del", "eth1")
    await place.start_worker()
    assert "interface eth1 on network net1 is gone" in (await place.reach(1, S.FAILED)).error
