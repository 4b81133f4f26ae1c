"""Init, join and leave against the real manager process; the worker is scripted."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from pathlib import Path

import aiohttp
import grpc
import pytest

from shoal.api.v1 import control_pb2, control_pb2_grpc, node_pb2, types_pb2
from shoal.clock import NS_PER_S, SystemClock
from shoal.security.identity import read_identity
from shoal.security.roles import Role
from shoal.settings.node import read_node_config
from swarmd.children import MANAGER, daemon_command
from swarmd.doctor.managers import hear
from tests.integration.swarmd.conftest import Node, until
from tests.integration.swarmd.daemon import scripted
from tests.support.ports import free_port

pytestmark = pytest.mark.root
TIMEOUT_S = 60.0


def with_real_manager(settings, name: str) -> list[str]:
    return daemon_command(settings, name) if name == MANAGER else scripted(settings, name)


async def init(node: Node, **fields) -> node_pb2.InitResponse:
    fields.setdefault("listen_address", f"127.0.0.1:{free_port()}")
    return await node.control.Init(node_pb2.InitRequest(**fields), timeout=TIMEOUT_S)


async def info(node: Node) -> node_pb2.InfoResponse:
    return await node.control.Info(node_pb2.InfoRequest(), timeout=TIMEOUT_S)


async def cluster_of(node: Node):
    stub = control_pb2_grpc.ControlStub(node.channel)
    return (await stub.GetCluster(control_pb2.GetClusterRequest(), timeout=TIMEOUT_S)).cluster


async def nodes_of(node: Node):
    stub = control_pb2_grpc.ControlStub(node.channel)
    return (await stub.ListNodes(control_pb2.ListNodesRequest(), timeout=TIMEOUT_S)).nodes


async def refused(call) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return f"{caught.value.code().name} {caught.value.details()}"


class _Slow(SystemClock):
    """Wrong by more than a minute."""

    def now_ns(self) -> int:
        return super().now_ns() - 90 * NS_PER_S


async def test_the_doctor_hears_managers_over_the_cluster_s_port_and_how_late_its_clock_is(
    node: Node,
):
    async with node.running(command=with_real_manager):
        await init(node)
        identity = read_identity(node.paths.identity)
        address = read_node_config(node.paths.node_config).advertise_address
        nobody = f"127.0.0.1:{free_port()}"
        right, silent = await hear([address, nobody], identity, SystemClock())
        assert abs(right.ahead_s) <= right.uncertain_s < 60
        assert silent.error
        (late,) = await hear([address], identity, _Slow())
        assert abs(late.ahead_s - 90) <= late.uncertain_s


async def test_init_makes_a_cluster_and_leave_ends_it(node: Node):
    async with node.running(command=with_real_manager):
        made = await init(
            node, availability=types_pb2.NODE_AVAILABILITY_PAUSE, data_path_port=9000,
            ingress_pool="10.99.0.0/16", default_address_pools=["10.96.0.0/12"],
            default_address_pool_mask_length=27, task_history_retention_limit=3,
        )  # fmt: skip
        now = await info(node)
        assert (now.state, now.error) == ("active", "")
        assert (now.node_id, now.cluster_id) == (made.node_id, made.cluster_id)
        assert now.role == types_pb2.NODE_ROLE_MANAGER
        assert now.advertise_address == made.advertise_address
        assert set(now.processes) == {"swarmd", "manager", "worker"}
        assert not node.paths.bootstrap.exists()
        cluster = await cluster_of(node)
        assert cluster.id == made.cluster_id
        assert (cluster.data_path_port, cluster.ingress_pool) == (9000, "10.99.0.0/16")
        assert list(cluster.default_address_pools) == ["10.96.0.0/12"]
        assert cluster.default_address_pool_mask_length == 27
        assert cluster.spec.annotations.name == "default"
        assert cluster.spec.orchestration.task_history_retention_limit == 3
        assert cluster.root_ca.join_tokens.worker == made.join_tokens.worker
        (first,) = await nodes_of(node)
        assert (first.id, first.role) == (made.node_id, types_pb2.NODE_ROLE_MANAGER)
        assert first.spec.availability == types_pb2.NODE_AVAILABILITY_PAUSE
        assert first.description.hostname == "node-1"
        assert first.manager_status.address == made.advertise_address
        assert node.told()[-1] == "reload member"

        assert "already part of a cluster" in await refused(init(node))
        leave = node.control.Leave
        assert "--force" in await refused(leave(node_pb2.LeaveRequest(), timeout=TIMEOUT_S))
        await leave(node_pb2.LeaveRequest(force=True), timeout=TIMEOUT_S)
        assert node.told()[-2:] == ["remove", "reload nobody"]
        assert (await info(node)).state == "inactive"
        assert not node.paths.raft.exists()
        assert not node.paths.node_config.exists()
        again = await init(node)
        assert again.cluster_id != made.cluster_id
        assert [row.id for row in await nodes_of(node)] == [again.node_id]


async def test_a_cluster_survives_a_restart_of_its_daemon(node: Node):
    async with node.running(command=with_real_manager):
        made = await init(node)
    async with node.running(command=with_real_manager):
        assert (await info(node)).state == "active"
        assert (await cluster_of(node)).id == made.cluster_id


async def test_the_manager_comes_back_after_a_crash(node: Node):
    async with node.running(command=with_real_manager):
        made = await init(node)
        pid = (await info(node)).processes["manager"]
        os.kill(pid, signal.SIGKILL)
        while (await info(node)).processes.get("manager") == pid:
            await asyncio.sleep(0.01)
        # It may not even listen yet: the call waits for it.
        assert (await cluster_of(node)).id == made.cluster_id


async def test_a_client_that_goes_away_does_not_stop_an_init(node: Node):
    async with node.running(command=with_real_manager):
        call = asyncio.create_task(init(node))
        await until(lambda: node.paths.node_config.exists())
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        while (await info(node)).state == "pending":
            await asyncio.sleep(0.02)
        assert (await info(node)).state == "active"
        assert len(await nodes_of(node)) == 1


async def test_an_init_whose_manager_cannot_start_leaves_nothing(node: Node):
    def broken(settings, name: str) -> list[str]:
        return ["/bin/false"] if name == MANAGER else scripted(settings, name)

    async with node.running(command=broken):
        text = await refused(init(node))
        assert text.startswith("UNAVAILABLE the manager could not start")
        assert "exit code 1" in text
        assert (await info(node)).state == "inactive"
        left = {path.name for path in node.paths.state.iterdir()}
        assert left <= {"swarmd.lock", "worker.calls"}


async def test_a_taken_port_is_refused_before_anything_is_made(node: Node):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        async with node.running():
            text = await refused(init(node, listen_address=address))
            assert text.startswith(f"FAILED_PRECONDITION listen address: {address}")
            assert not node.paths.bootstrap.exists()


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"data_path_port": 1023}, "1024"),
        ({"data_path_port": 49152}, "49151"),
        ({"ingress_pool": "10.0.0.0/33"}, "ingress pool"),
        ({"ingress_pool": "127.0.0.0/16"}, "ingress pool"),
        ({"default_address_pools": ["10.20.0.0/25"]}, "Subnet size is too small for pool: 24"),
        ({"availability": 9}, "availability"),
        ({"node_certificate_validity_ns": 1}, "1h"),
        ({"dispatcher_heartbeat_period_ns": 1}, "heartbeat"),
        ({"advertise_address": "nosuch0"}, "nosuch0"),
        ({"advertise_address": "0.0.0.0"}, "non-zero"),
        ({"data_path_address": "127.0.0.1:1"}, "--data-path-port"),
    ],
)
async def test_a_wrong_wish_is_refused(node: Node, fields: dict, word: str):
    async with node.running():
        text = await refused(init(node, **fields))
        assert text.startswith("INVALID_ARGUMENT")
        assert word in text


async def test_leftovers_of_an_interrupted_init_do_not_count(node: Node):
    """Everything but the identity was written when the machine went down."""
    node.paths.raft.mkdir(parents=True)
    (node.paths.raft / "wal").write_text("old")
    node.paths.bootstrap.write_bytes(b"secret")
    node.paths.node_config.write_text("{}")
    async with node.running():
        assert (await info(node)).state == "inactive"
        left = {path.name for path in node.paths.state.iterdir()}
        assert left <= {"swarmd.lock", "worker.calls"}


async def test_one_change_at_a_time(node: Node):
    async with node.running(command=with_real_manager):
        answers = await asyncio.gather(init(node), init(node), return_exceptions=True)
        errors = [a for a in answers if isinstance(a, grpc.aio.AioRpcError)]
        (error,) = errors
        assert error.code() is grpc.StatusCode.FAILED_PRECONDITION


class Pair:
    """A manager, and a node that may join it."""

    def __init__(self, base: Path) -> None:
        self.manager, self.worker = Node(base / "m"), Node(base / "w")

    async def join(self, made, token: str | None = None, *addresses: str):
        return await self.worker.control.Join(
            node_pb2.JoinRequest(
                remote_addresses=addresses or (made.advertise_address,),
                token=token or made.join_tokens.worker,
            ),
            timeout=TIMEOUT_S,
        )


@pytest.fixture
def pair(base: Path) -> Pair:
    return Pair(base)


async def test_a_worker_joins_and_leaves(pair: Pair):
    manager, worker = pair.manager, pair.worker
    async with manager.running(command=with_real_manager), worker.running():
        made = await init(manager)
        dead = f"127.0.0.1:{free_port()}"
        joined = await pair.join(made, None, dead, made.advertise_address)
        assert (joined.cluster_id, joined.role) == (made.cluster_id, types_pb2.NODE_ROLE_WORKER)
        identity = read_identity(worker.paths.identity)
        assert (identity.peer.node_id, identity.peer.role) == (joined.node_id, Role.WORKER)
        config = read_node_config(worker.paths.node_config)
        assert config is not None
        assert config.managers == (made.advertise_address, dead)
        assert config.data_path_address == "127.0.0.1"
        assert worker.told()[-1] == "reload member"
        assert {row.id for row in await nodes_of(manager)} == {made.node_id, joined.node_id}
        now = await info(worker)
        assert (now.state, list(now.managers)) == ("active", list(config.managers))

        text = await refused(nodes_of(worker))
        assert text.startswith("FAILED_PRECONDITION This node is not a manager.")
        assert made.advertise_address in text

        worker.tell("refuse-remove")
        leave = worker.control.Leave
        assert "a mount is busy" in await refused(leave(node_pb2.LeaveRequest(), timeout=TIMEOUT_S))
        assert (await info(worker)).state == "active"
        worker.untell("refuse-remove")
        await leave(node_pb2.LeaveRequest(), timeout=TIMEOUT_S)
        assert worker.told()[-2:] == ["remove", "reload nobody"]
        assert (await info(worker)).state == "inactive"
        assert "not part of" in await refused(leave(node_pb2.LeaveRequest(), timeout=TIMEOUT_S))


async def test_joins_that_are_refused_leave_nothing(pair: Pair):
    manager, worker = pair.manager, pair.worker
    async with manager.running(command=with_real_manager), worker.running():
        made = await init(manager)
        wrong = made.join_tokens.worker.rpartition("-")[0] + "-" + "0" * 25
        assert (await refused(pair.join(made, wrong))).startswith("PERMISSION_DENIED")
        stranger = made.join_tokens.worker.split("-")
        stranger[2] = "0" * len(stranger[2])
        assert (await refused(pair.join(made, "-".join(stranger)))).startswith("UNAUTHENTICATED")
        assert (await refused(pair.join(made, "SWMTKN-1-x"))).startswith("INVALID_ARGUMENT")
        dead = f"127.0.0.1:{free_port()}"
        text = await refused(pair.join(made, None, dead))
        assert text.startswith("UNAVAILABLE")
        assert dead in text
        assert (await info(worker)).state == "inactive"
        assert not (worker.paths.state / "identity").exists()
        assert len(await nodes_of(manager)) == 1


async def test_metrics_of_a_manager(node: Node):
    async with node.running(command=with_real_manager):
        made = await init(node)
        url = f"http://{node.daemon.metrics_address}"
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/metrics") as answer:
                text = await answer.text()
            async with session.get(f"{url}/readyz") as answer:
                assert json.loads(await answer.text())["ready"] is True
        labels = f'swarm_id="{made.cluster_id}"', f'node_id="{made.node_id}"'
        (line,) = [line for line in text.splitlines() if line.startswith("swarm_node_info{")]
        assert all(label in line for label in labels)
        assert "\nswarm_node_manager 1.0\n" in text
        assert "\nswarm_raft_transaction_latency_seconds_count " in text
        # That no family comes twice is tested on real processes (integration/cluster): here the
        # test's own process may have imported the manager's families.


async def test_stopping_swarmd_undoes_an_init_under_way(node: Node):
    """Its manager never gets ready: the scripted one says so."""
    node.paths.state.mkdir(parents=True)
    node.tell("manager.unready", "still replaying")
    async with node.running():
        call = asyncio.create_task(init(node))
        await node.until_called("manager", "serving")
        assert (await info(node)).state == "pending"
    await asyncio.gather(call, return_exceptions=True)
    assert node.calls("manager")[-1] == "ended"
    async with node.running():
        assert (await info(node)).state == "inactive"
