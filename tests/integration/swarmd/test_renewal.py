"""Certificates that live for seconds, renewed by the real daemon and the real manager process."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import grpc
import msgspec
import pytest

from manager.ca.core import new_cluster_secrets
from shoal.api.v1 import control_pb2, control_pb2_grpc, node_pb2, types_pb2, watch_pb2
from shoal.api.v1.watch_pb2_grpc import WatchStub
from shoal.clock import SystemClock
from shoal.ids import ClusterId, NodeId, new_id
from shoal.security.grpc_tls import channel_credentials, fetch_server_certificate, secure_channel
from shoal.security.identity import NodeIdentity, make_identity, read_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.settings.node import NodeConfig, read_node_config
from shoal.wire.objects import entry_to_bytes
from swarmd.addresses import resolve
from swarmd.core import InitWish, NewNode, first_entry, plan_init
from swarmd.interfaces import machine_addresses
from swarmd.node import LocalNode
from tests.integration.swarmd.conftest import Node, until
from tests.integration.swarmd.test_cluster import (
    TIMEOUT_S,
    cluster_of,
    info,
    nodes_of,
    with_real_manager,
)
from tests.support.ports import free_port

pytestmark = pytest.mark.root


def make_cluster(node: Node, validity_s: int) -> int:
    """What init leaves on disk, with a validity that it would refuse. Result: the port."""
    port, now_ns = free_port(), time.time_ns()
    addresses = resolve("127.0.0.1", f"127.0.0.1:{port}", "", machine=machine_addresses())
    plan = plan_init(InitWish(), addresses)
    ca = plan.spec.ca.replaced(node_certificate_validity_ns=validity_s * 10**9)
    plan = msgspec.structs.replace(plan, spec=plan.spec.replaced(ca=ca))
    who = NewNode(NodeId(new_id()), ClusterId(new_id()), "node-1")
    secrets, key = new_cluster_secrets(now_ns=now_ns), make_key()
    peer = PeerIdentity(node_id=who.node_id, role=Role.MANAGER, cluster_id=who.cluster_id)
    root = RootCA(secrets.root_certificate_pem, secrets.root_key_pem)
    certificate = root.sign(make_csr(key), peer, now_ns=now_ns, validity_s=validity_s)
    address = f"127.0.0.1:{port}"
    config = NodeConfig(
        advertise_address=address, listen_address=address, data_path_address="127.0.0.1",
        managers=(),
    )  # fmt: skip
    node.paths.state.mkdir(parents=True)
    LocalNode(node.paths, SystemClock()).become_blocking(
        make_identity(certificate, key, secrets.root_certificate_pem),
        config,
        bootstrap=entry_to_bytes(first_entry(plan, who, secrets, now_ns=now_ns)),
    )
    return port


def identity_of(node: Node) -> NodeIdentity:
    return read_identity(node.paths.identity)


async def until_renewed(node: Node, old: NodeIdentity) -> NodeIdentity:
    deadline = time.monotonic() + TIMEOUT_S
    while (now := identity_of(node)).certificate_pem == old.certificate_pem:
        assert time.monotonic() < deadline, "it was not renewed in time"
        await asyncio.sleep(0.05)
    return now


async def until_ready(node: Node) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            await nodes_of(node)
            return
        except grpc.aio.AioRpcError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)


async def join(worker: Node, manager: Node, port: int) -> NodeIdentity:
    token = (await cluster_of(manager)).root_ca.join_tokens.worker
    await worker.control.Join(
        node_pb2.JoinRequest(
            remote_addresses=[f"127.0.0.1:{port}"], token=token, advertise_address="127.0.0.1",
            listen_address=f"127.0.0.1:{free_port()}",
        ),
        timeout=TIMEOUT_S,
    )  # fmt: skip
    return identity_of(worker)


@pytest.fixture
def other(base: Path) -> Iterator[Node]:
    directory = Path(tempfile.mkdtemp(prefix="shoal-t-", dir="/tmp"))
    yield Node(directory)
    shutil.rmtree(directory)


async def test_a_manager_renews_itself_and_drops_no_connection(node: Node):
    port = make_cluster(node, validity_s=6)
    first = identity_of(node)
    async with node.running(command=with_real_manager):
        await until_ready(node)
        pid = (await info(node)).processes["manager"]
        credentials = channel_credentials(first.root_pem, first.certificate_pem, first.key_pem)
        async with secure_channel(f"127.0.0.1:{port}", credentials) as channel:
            watch = WatchStub(channel).Watch(watch_pb2.WatchRequest())
            await watch.read()
            second = await until_renewed(node, first)
            assert second.peer == first.peer
            assert second.key_pem != first.key_pem
            third = await until_renewed(node, second)
            await until(lambda: time.time_ns() > first.not_after_ns + 10**9)
            await rename(node, "label", "value")  # the stream of the first certificate lives on
            while "value" not in str(await asyncio.wait_for(watch.read(), TIMEOUT_S)):
                pass
        shown = await fetch_server_certificate("127.0.0.1", port, TIMEOUT_S)
        assert shown.split() != first.certificate_pem.split()
        assert (await info(node)).processes["manager"] == pid
        assert (await info(node)).state == "active"
        assert node.calls("worker").count("reload identity") >= 2
        (row,) = await nodes_of(node)
        assert row.certificate.not_before_ns >= second.not_before_ns
        address = (await info(node)).metrics_address
        async with aiohttp.ClientSession() as http, http.get(f"http://{address}/metrics") as page:
            (line,) = [
                line
                for line in (await page.text()).splitlines()
                if line.startswith("shoal_node_certificate_expiry_seconds ")
            ]
        assert float(line.split()[1]) >= third.not_after_ns // 10**9


async def rename(node: Node, key: str, value: str) -> None:
    stub = control_pb2_grpc.ControlStub(node.channel)
    (row,) = await nodes_of(node)
    row.spec.annotations.labels[key] = value
    await stub.UpdateNode(control_pb2.UpdateNodeRequest(node=row.id, spec=row.spec))


async def test_a_manager_that_slept_past_its_certificate_wakes_up(node: Node):
    make_cluster(node, validity_s=5)
    async with node.running(command=with_real_manager):
        await until_ready(node)
    old = identity_of(node)
    await until(lambda: time.time_ns() > old.not_after_ns + 10**9)
    async with node.running(command=with_real_manager):
        new = await until_renewed(node, old)
        assert new.peer == old.peer
        await until_ready(node)
        assert (await info(node)).state == "active"


async def test_a_worker_renews_and_comes_back_after_its_certificate_ended(node: Node, other: Node):
    port = make_cluster(node, validity_s=8)
    async with node.running(command=with_real_manager):
        await until_ready(node)
        async with other.running(command=with_real_manager):
            joined = await join(other, node, port)
            old = await until_renewed(other, joined)
            assert old.peer == joined.peer
            assert (await info(other)).state == "active"
        old = identity_of(other)
        await until(lambda: time.time_ns() > old.not_after_ns + 10**9)
        async with other.running(command=with_real_manager):
            new = await until_renewed(other, old)
            assert new.peer == old.peer
            while (await info(other)).state != "active":
                await asyncio.sleep(0.05)
            assert len(await nodes_of(node)) == 2


async def test_a_removed_worker_does_not_come_back(node: Node, other: Node):
    port = make_cluster(node, validity_s=6)
    async with node.running(command=with_real_manager):
        await until_ready(node)
        async with other.running(command=with_real_manager):
            old = await join(other, node, port)
        stub = control_pb2_grpc.ControlStub(node.channel)
        await stub.RemoveNode(control_pb2.RemoveNodeRequest(node=old.peer.node_id, force=True))
        old = identity_of(other)
        await until(lambda: time.time_ns() > old.not_after_ns + 10**9)
        async with other.running(command=with_real_manager):
            while "removed from the cluster" not in (await info(other)).error:
                await asyncio.sleep(0.05)
            assert (await info(other)).state == "error"
            assert identity_of(other).certificate_pem == old.certificate_pem


async def test_news_of_the_session_renew_the_certificate_and_are_remembered(
    node: Node, other: Node
):
    port = make_cluster(node, validity_s=3600)
    async with node.running(command=with_real_manager):
        await until_ready(node)
        async with other.running(command=with_real_manager):
            joined = await join(other, node, port)
            root = RootCA.create(now_ns=time.time_ns()).certificate_pem
            news = node_pb2.MembershipNews(
                desired_role=types_pb2.NODE_ROLE_WORKER,
                managers=[f"127.0.0.1:{port}", "127.0.0.1:1"],
                root_ca=joined.root_pem + root,
            )
            (other.paths.state / "news.tmp").write_bytes(news.SerializeToString())
            (other.paths.state / "news.tmp").rename(other.paths.state / "news")
            await until(lambda: root in identity_of(other).root_pem)
            config = read_node_config(other.paths.node_config)
            assert config is not None
            assert config.managers == tuple(news.managers)
            assert identity_of(other).certificate_pem == joined.certificate_pem
            news.root_ca, news.renew_certificate = joined.root_pem, True
            (other.paths.state / "news.tmp").write_bytes(news.SerializeToString())
            (other.paths.state / "news.tmp").rename(other.paths.state / "news")
            renewed = await until_renewed(other, joined)
            assert renewed.peer == joined.peer
            assert renewed.root_pem == joined.root_pem


async def test_a_root_is_replaced_under_a_running_cluster(node: Node, other: Node):
    port = make_cluster(node, validity_s=3600)
    other.paths.state.mkdir(parents=True)
    for one in (node, other):
        one.tell("follow")
    async with node.running(command=with_real_manager):
        await until_ready(node)
        async with other.running(command=with_real_manager):
            worker = await join(other, node, port)
            manager = identity_of(node)
            before = (await cluster_of(node)).root_ca
            stub = control_pb2_grpc.ControlStub(node.channel)
            started = await stub.RotateRootCa(control_pb2.RotateRootCaRequest())
            assert started.cluster.root_ca.rotation.ca_certificate
            assert not started.cluster.root_ca.rotation.ca_key
            again = stub.RotateRootCa(control_pb2.RotateRootCaRequest())
            with pytest.raises(grpc.aio.AioRpcError, match="under way already"):
                await again
            deadline = time.monotonic() + TIMEOUT_S
            while (after := (await cluster_of(node)).root_ca).HasField("rotation"):
                assert time.monotonic() < deadline, "the rotation did not end"
                await asyncio.sleep(0.2)
            assert after.certificate == started.cluster.root_ca.rotation.ca_certificate
            assert after.join_tokens.worker != before.join_tokens.worker
            for one, old in ((node, manager), (other, worker)):
                await until(lambda one=one: identity_of(one).root_pem == after.certificate)
                now = identity_of(one)
                assert now.peer == old.peer
                assert now.certificate_pem != old.certificate_pem
            assert (await info(node)).state == (await info(other)).state == "active"
        third = Node(Path(tempfile.mkdtemp(prefix="shoal-t-", dir="/tmp")))
        try:
            async with third.running(command=with_real_manager):
                joined = await join(third, node, port)
                assert joined.root_pem == after.certificate
        finally:
            shutil.rmtree(third.base)


async def test_managers_that_all_slept_too_long_elect_a_leader_again(node: Node, other: Node):
    port = make_cluster(node, validity_s=10)
    async with node.running(command=with_real_manager):
        await until_ready(node)
        async with other.running(command=with_real_manager):
            token = (await cluster_of(node)).root_ca.join_tokens.manager
            await other.control.Join(
                node_pb2.JoinRequest(
                    remote_addresses=[f"127.0.0.1:{port}"], token=token,
                    advertise_address=f"127.0.0.1:{(second := free_port())}",
                    listen_address=f"127.0.0.1:{second}",
                ),
                timeout=TIMEOUT_S,
            )  # fmt: skip
            deadline = time.monotonic() + TIMEOUT_S
            while sum(row.manager_status.raft_id > 0 for row in await nodes_of(node)) < 2:
                assert time.monotonic() < deadline, "the second manager did not get in"
                await asyncio.sleep(0.1)
            await until_ready(other)
    ends_ns = max(identity_of(one).not_after_ns for one in (node, other))
    old = [identity_of(one) for one in (node, other)]
    await until(lambda: time.time_ns() > ends_ns + 10**9)
    async with (
        node.running(command=with_real_manager),
        other.running(command=with_real_manager),
    ):
        for one, before in zip((node, other), old, strict=True):
            assert (await until_renewed(one, before)).peer == before.peer
        await asyncio.gather(until_ready(node), until_ready(other))
        assert len(await nodes_of(other)) == 2
