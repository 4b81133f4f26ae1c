"""Supervision, shutdown, locks and the command line, with real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
from pathlib import Path

import aiohttp
import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from shoal.api.v1 import node_pb2
from shoal.errors import FailedPrecondition, InvalidArgument
from swarmd import prepare
from tests.integration.swarmd.conftest import Node, until

pytestmark = pytest.mark.root
TIMEOUT_S = 60.0
DAEMON = "tests/integration/swarmd/daemon.py"


async def get(node: Node, path: str) -> tuple[int, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{node.daemon.metrics_address}{path}") as answer,
    ):
        return answer.status, await answer.text()


def exists(pid: int) -> bool:
    """Whether it runs; a zombie waits for init only."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pid_of(node: Node, name: str) -> int:
    return int((node.paths.run / f"{name}.pid").read_text().split()[0])


async def metric(node: Node, name: str) -> dict[str, float]:
    _, text = await get(node, "/metrics")
    return {
        sample.labels.get("process", ""): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_a_process_that_dies_is_started_again_and_counted(node: Node):
    async with node.running():
        await node.until_called("worker", "serving")
        first = (await node.control.Info(node_pb2.InfoRequest())).processes["worker"]
        os.kill(first, signal.SIGKILL)
        await node.until_called("worker", "serving", times=2)
        second = (await node.control.Info(node_pb2.InfoRequest())).processes["worker"]
        assert second not in {0, first}
        assert (await metric(node, "shoal_process_restarts_total"))["worker"] == 1


async def test_stopping_ends_the_processes_politely(node: Node):
    async with node.running():
        await node.until_called("worker", "serving")
        pid = pid_of(node, "worker")
    assert node.calls("worker")[-1] == "ended"
    assert not exists(pid)
    assert not list(node.paths.run.glob("*.pid"))


async def test_a_process_that_ignores_sigterm_is_killed(node: Node):
    node.paths.state.mkdir(parents=True)
    node.tell("worker.stubborn")
    async with node.running():
        await node.until_called("worker", "serving")
        pid = pid_of(node, "worker")
    assert "ignored" in node.calls("worker")
    assert not exists(pid)


async def test_killing_swarmd_takes_its_processes_along(node: Node, launch):
    node.paths.state.mkdir(parents=True)
    swarmd = launch(DAEMON, str(node.base))
    await node.until_called("worker", "serving")
    pid = pid_of(node, "worker")
    swarmd.process.kill()
    await until(lambda: not exists(pid))
    assert node.calls("worker")[-1] == "ended"


async def test_a_leftover_process_is_ended_before_its_successor_starts(node: Node, launch):
    """It ignores the SIGTERM it gets for its parent's death: the next swarmd finds it."""
    node.paths.state.mkdir(parents=True)
    node.tell("worker.stubborn")
    swarmd = launch(DAEMON, str(node.base))
    await node.until_called("worker", "serving")
    leftover = pid_of(node, "worker")
    swarmd.process.kill()
    await swarmd.exit_code()
    await node.until_called("worker", "ignored")
    assert exists(leftover)
    node.untell("worker.stubborn")
    async with node.running():
        await node.until_called("worker", "serving", times=2)
        assert not exists(leftover)


async def test_a_pid_file_of_another_process_harms_nobody(node: Node):
    node.paths.run.mkdir(parents=True)
    (node.paths.run / "worker.pid").write_text(f"{os.getpid()} 1\n")
    async with node.running():
        await node.until_called("worker", "serving")


async def test_sigterm_ends_swarmd_with_0(node: Node, launch):
    node.paths.state.mkdir(parents=True)
    swarmd = launch(DAEMON, str(node.base))
    await node.until_called("worker", "serving")
    swarmd.process.terminate()
    assert await swarmd.exit_code() == 0
    text = swarmd.log.read_text().splitlines()
    lines = [json.loads(line) for line in text if line.startswith("{")]  # gRPC may warn beside us
    assert [line["event"] for line in lines][-1] == "process.ended"


async def test_a_second_swarmd_is_refused(node: Node, launch):
    async with node.running():
        state, run = str(node.paths.state), str(node.base / "other")
        second = launch("-m", "swarmd", "--state-dir", state, "--run-dir", run)
        assert await second.exit_code() == 3
        third = launch("-m", "swarmd", "--state-dir", run, "--run-dir", str(node.paths.run))
        assert await third.exit_code() == 3
        reasons = [json.loads(line)["reason"] for line in second.log.read_text().splitlines()]
        assert state in reasons[0]
        assert str(node.paths.run) in reasons[1]
        assert all(f"in use by another swarmd (pid {os.getpid()})" in text for text in reasons)
        await node.control.Info(node_pb2.InfoRequest())  # the first one's socket is untouched


def test_without_root_it_is_refused():
    os.seteuid(65534)
    try:
        with pytest.raises(FailedPrecondition, match="must run as root"):
            prepare.require_root()
    finally:
        os.seteuid(0)
    prepare.require_root()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--cgroup-parent", "shoal"], "below the root"),
        (["--cgroup-parent", "/a/../b"], "below the root"),
        (["--log-level", "loud"], "loud"),
        (["--nonsense"], "--nonsense"),
        (["--metrics-addr", "127.0.0.1:x"], "port"),
    ],
)
async def test_a_wrong_command_line_exits_with_2(base, launch, arguments: list[str], word: str):
    directories = ["--state-dir", str(base / "s"), "--run-dir", str(base / "r")]
    swarmd = launch("-m", "swarmd", *directories, *arguments)
    assert await swarmd.exit_code() == 2
    assert word in swarmd.log.read_text()


async def test_directories_and_socket_are_private(node: Node):
    async with node.running():
        assert stat.S_IMODE(node.paths.state.stat().st_mode) == 0o700
        assert stat.S_IMODE(node.paths.run.stat().st_mode) & 0o007 == 0
        assert stat.S_IMODE(node.paths.swarmd_socket.stat().st_mode) == 0o660


async def test_a_dead_daemons_socket_is_replaced(node: Node):
    node.paths.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(node.paths.swarmd_socket))
    async with node.running():
        await node.control.Info(node_pb2.InfoRequest(), timeout=TIMEOUT_S)


async def test_info_tells_what_the_machine_is(node: Node):
    async with node.running():
        await node.until_called("worker", "serving")
        info = await node.control.Info(node_pb2.InfoRequest(), timeout=TIMEOUT_S)
        assert info.hostname == "node-1"
        assert info.state == "inactive"
        assert info.state_dir == str(node.paths.state)
        assert info.metrics_address == node.daemon.metrics_address
        assert (info.kernel, info.architecture) == (os.uname().release, os.uname().machine)
        assert info.nano_cpus == len(os.sched_getaffinity(0)) * 10**9
        assert info.memory_bytes == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert info.os
        assert info.version
        assert info.cgroup_version in {"1", "2"}
        assert info.processes == {"swarmd": os.getpid(), "worker": pid_of(node, "worker")}
        assert (info.error, info.node_id, info.docker_socket) == ("", "", "")


async def test_metrics_are_one_page_of_all_processes(node: Node):
    async with node.running():
        await node.until_called("worker", "serving")
        status, text = await get(node, "/metrics")
        assert status == 200
        families = [family.name for family in text_string_to_metric_families(text)]
        assert len(families) == len(set(families))
        assert "fake_worker" in families
        assert (await metric(node, "shoal_process_up")) == {"swarmd": 1, "worker": 1}
        resident = await metric(node, "shoal_process_resident_memory_bytes")
        assert resident["worker"] > 1 << 20
        assert (await metric(node, "shoal_process_open_fds"))["worker"] > 3
        assert (await metric(node, "shoal_process_cpu_seconds_total"))["worker"] > 0


async def test_a_frozen_process_is_left_out_of_the_page(node: Node):
    async with node.running():
        await node.until_called("worker", "serving")
        assert (await metric(node, "shoal_process_up"))["worker"] == 1
        pid = pid_of(node, "worker")
        os.kill(pid, signal.SIGSTOP)
        try:
            (_, text), (ready, reasons) = await asyncio.gather(
                get(node, "/metrics"), get(node, "/readyz")
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        assert 'shoal_process_up{process="worker"} 0.0' in text
        assert "fake_worker" not in text
        assert ready == 503
        assert "worker" in json.loads(reasons)["reasons"]


async def test_health_and_readiness(node: Node):
    async with node.running():
        await node.until_called("worker", "serving")
        assert await get(node, "/healthz") == (200, "ok\n")
        status, body = await get(node, "/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "reasons": {}})
        node.tell("worker.unready", "no overlay file system")
        status, body = await get(node, "/readyz")
        assert status == 503
        assert json.loads(body)["reasons"] == {"worker": "no overlay file system"}


async def test_an_address_in_use_is_refused_at_start(node: Node):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(FailedPrecondition, match="cannot be listened on"):
            async with node.running(metrics_address=address):
                pytest.fail("it started")
    assert not node.calls("worker")
    async with node.running(metrics_address=address):  # the locks were given back
        pass


@pytest.mark.parametrize("address", ["127.0.0.1", "nowhere", "127.0.0.1:99999", "127.0.0.1:"])
async def test_a_bad_metrics_address_is_refused(node: Node, address: str):
    with pytest.raises(InvalidArgument, match="metrics address"):
        async with node.running(metrics_address=address):
            pytest.fail("it started")


async def test_no_metrics_address_means_no_pages(node: Node):
    async with node.running(metrics_address=""):
        info = await node.control.Info(node_pb2.InfoRequest(), timeout=TIMEOUT_S)
        assert info.metrics_address == ""


async def test_a_damaged_identity_is_an_error_not_a_crash(node: Node):
    identity = node.paths.state / "identity"
    identity.mkdir(parents=True)
    (identity / "node.crt").write_text("nonsense")
    async with node.running():
        info = await node.control.Info(node_pb2.InfoRequest(), timeout=TIMEOUT_S)
        assert info.state == "error"
        assert "missing" in info.error
        status, body = await get(node, "/readyz")
        assert status == 503
        assert "swarmd" in json.loads(body)["reasons"]
        with pytest.raises(grpc.aio.AioRpcError, match="already part of a cluster"):
            await node.control.Init(node_pb2.InitRequest(), timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError, match="--force"):
            await node.control.Leave(node_pb2.LeaveRequest(), timeout=TIMEOUT_S)
        await node.control.Leave(node_pb2.LeaveRequest(force=True), timeout=TIMEOUT_S)
        info = await node.control.Info(node_pb2.InfoRequest(), timeout=TIMEOUT_S)
        assert info.state == "inactive"
