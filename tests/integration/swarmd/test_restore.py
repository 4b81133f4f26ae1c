"""Backup and restore against the real manager process; the worker is scripted.

A refused or interrupted restore leaves nothing; a finished one is the cluster of the backup.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from manager.ca.autolock import with_unlock_key
from manager.storage.backup import REMEDY, Manifest, encode_backup
from manager.storage.snapshot_file import SnapshotRecord
from shoal.api.v1 import node_pb2
from shoal.errors import FailedPrecondition, InvalidArgument, SwarmError, Unavailable
from shoal.model.objects import Cluster, Service
from shoal.model.specs import ClusterSpec, ContainerSpec, ServiceSpec, TaskSpec
from shoal.model.types import Annotations, RootCa
from shoal.security.identity import read_identity
from shoal.security.root import RootCA
from shoal.security.unlock import make_unlock_key
from shoal.settings.node import read_node_config
from shoal.wire.objects import object_to_bytes
from swarmctl import backups
from swarmctl.client import Client
from swarmctl.target import Target
from swarmctl.types import RestoredCluster, RestoreOptions
from tests.integration.swarmd.conftest import Node
from tests.integration.swarmd.test_cluster import (
    TIMEOUT_S,
    info,
    init,
    with_real_manager,
)
from tests.support.ports import free_port

pytestmark = pytest.mark.root
ROOT = RootCA.create(now_ns=time.time_ns())
FILES_OF_NO_CLUSTER = {"swarmd.lock", "worker.calls"}


def a_spec(name: str) -> ServiceSpec:
    runtime = ContainerSpec(image="web:1")
    return ServiceSpec(annotations=Annotations(name=name), task=TaskSpec(runtime=runtime))


@asynccontextmanager
async def client_of(node: Node) -> AsyncIterator[Client]:
    socket = node.paths.swarmd_socket
    async with Client(Target(host=f"unix://{socket}", socket=socket)) as client:
        yield client


async def backup(node: Node) -> bytes:
    async with client_of(node) as client:
        return b"".join([part.chunk async for part in backups.backup(client)])


async def restore(node: Node, content: bytes, **options: Any) -> RestoredCluster:
    async def chunks() -> AsyncIterator[bytes]:
        for at in range(0, len(content), 1000):
            yield content[at : at + 1000]

    options.setdefault("listen_address", f"127.0.0.1:{free_port()}")
    async with client_of(node) as client:
        return await backups.restore(client, RestoreOptions(**options), chunks())


def left(node: Node) -> set[str]:
    return {path.name for path in node.paths.state.iterdir()} - FILES_OF_NO_CLUSTER


def a_backup(*rows, made_by: str = "0.1.0", cluster_id: str = "c" * 25) -> bytes:
    manifest = Manifest(cluster_id, 9, 3, time.time_ns(), made_by)
    return b"".join(
        encode_backup(manifest, [SnapshotRecord(1, object_to_bytes(row)) for row in rows])
    )


def a_cluster(key: bytes = ROOT.key_pem, **fields) -> Cluster:
    root_ca = RootCa(certificate=ROOT.certificate_pem, key=key)
    return Cluster(id="c" * 25, root_ca=root_ca, **fields)


async def test_a_restored_cluster_is_the_one_of_the_backup(node: Node):
    async with node.running(command=with_real_manager):
        made = await init(node)
        async with client_of(node) as client:
            before = (await client.create_service(a_spec("web"))).service
            saved = await backup(node)
            await client.create_service(a_spec("later"))
        await node.control.Leave(node_pb2.LeaveRequest(force=True), timeout=TIMEOUT_S)

        restored = await restore(node, saved)
        assert restored.cluster_id == made.cluster_id
        assert restored.node_id != made.node_id
        now = await info(node)
        assert (now.state, now.node_id) == ("active", restored.node_id)
        assert read_node_config(node.paths.node_config).advertise_address == now.advertise_address
        assert read_identity(node.paths.identity).peer.cluster_id == made.cluster_id
        assert node.told()[-1] == "reload member"
        async with client_of(node) as client:
            (entry,) = await client.services()
            assert entry.service.spec == before.spec
            tokens = (await client.cluster()).root_ca.join_tokens
            assert tokens.worker == made.join_tokens.worker
            assert {one.id for one in await client.nodes()} == {made.node_id, restored.node_id}
            # Versions that were given after the backup are not given again.
            written = (await client.create_service(a_spec("after"))).service
            assert written.meta.version.index > before.meta.version.index + 1_000_000
            again = await backup(node)
    async with node.running(command=with_real_manager):
        async with client_of(node) as client:
            names = {one.service.spec.annotations.name for one in await client.services()}
        assert names == {"web", "after"}
        # A backup of a restored cluster is a backup like any other.
        await node.control.Leave(node_pb2.LeaveRequest(force=True), timeout=TIMEOUT_S)
        assert (await restore(node, again)).known_nodes == 2
        async with client_of(node) as client:
            assert len(await client.services()) == 2
            refused = backups.restore(client, RestoreOptions(), _nothing())
            with pytest.raises(FailedPrecondition, match="already part of a cluster"):
                await refused


async def test_a_locked_cluster_is_locked_again_with_the_key_of_the_backup(node: Node):
    key = make_unlock_key()
    spec = ClusterSpec(autolock_managers=True)
    saved = a_backup(with_unlock_key(a_cluster(spec=spec), key), Service(id="s", spec=a_spec("s")))
    async with node.running(command=with_real_manager):
        assert (await restore(node, saved)).autolock
    on_disk = b"".join(path.read_bytes() for path in node.paths.state.rglob("*") if path.is_file())
    assert b"BEGIN PRIVATE KEY" not in on_disk
    assert ROOT.key_pem not in on_disk
    async with node.running(command=with_real_manager):
        assert (await info(node)).state == "locked"
        request = node_pb2.UnlockRequest(unlock_key=key.render())
        await node.control.Unlock(request, timeout=TIMEOUT_S)
        async with client_of(node) as client:
            assert [one.service.id for one in await client.services()] == ["s"]


async def _nothing() -> AsyncIterator[bytes]:
    yield b""


GOOD = a_backup(a_cluster())


@pytest.mark.parametrize(
    ("content", "options", "error", "text"),
    [
        (b"", {}, FailedPrecondition, "not a backup of Shoal"),
        (b"something else" * 10_000, {}, FailedPrecondition, "not a backup of Shoal"),
        (GOOD[:-1], {}, FailedPrecondition, REMEDY),
        (GOOD[:200], {}, FailedPrecondition, REMEDY),
        (GOOD[:400] + b"?" + GOOD[401:], {}, FailedPrecondition, REMEDY),
        (GOOD + b"\0", {}, FailedPrecondition, REMEDY),
        (
            a_backup(a_cluster(), made_by="99.0.0"),
            {},
            FailedPrecondition,
            r"made by Shoal 99\.0\.0",
        ),
        (a_backup(Service(id="s")), {}, FailedPrecondition, "holds no cluster"),
        (a_backup(a_cluster(), cluster_id="other"), {}, FailedPrecondition, "holds no cluster"),
        (
            a_backup(a_cluster(key=b"")),
            {},
            FailedPrecondition,
            "nobody can certify the first manager: give the key's file with `--ca-key`",
        ),
        (
            a_backup(a_cluster(key=b"")),
            {"ca_key": RootCA.create(now_ns=time.time_ns()).key_pem},
            InvalidArgument,
            "ca-key: the root key does not belong to the root certificate: it must be",
        ),
        (a_backup(a_cluster(key=b"")), {"ca_key": b"no key"}, InvalidArgument, "ca-key: .*PEM"),
        (GOOD, {"ca_key": ROOT.key_pem}, InvalidArgument, "holds the key of the cluster's root"),
        (GOOD, {"advertise_address": "nosuch0"}, InvalidArgument, "nosuch0"),
        (
            a_backup(a_cluster(ingress_pool="192.0.0.0/8")),
            {"advertise_address": "192.0.2.1"},
            InvalidArgument,
            "ingress pool",
        ),
    ],
)
async def test_what_cannot_be_restored_leaves_nothing(node: Node, content, options, error, text):
    async with node.running():
        with pytest.raises(error, match=text):
            await restore(node, content, **options)
        assert (await info(node)).state == "inactive"
        assert left(node) == set()


async def test_a_client_that_breaks_off_leaves_nothing_and_the_next_one_is_served(node: Node):
    async with node.running():
        call = node.control.Restore(timeout=TIMEOUT_S)
        await call.write(node_pb2.RestoreRequest(options=node_pb2.RestoreOptions()))
        await call.initial_metadata()
        await call.write(node_pb2.RestoreRequest(chunk=GOOD[:100]))
        with pytest.raises(SwarmError, match="restore, join or leave is under way"):
            await restore(node, GOOD)
        call.cancel()

        async def is_free() -> bool:
            try:
                await restore(node, b"")
            except FailedPrecondition as error:
                return "not a backup" in error.message
            return False

        async with asyncio.timeout(TIMEOUT_S):
            while not await is_free():
                await asyncio.sleep(0.02)

        async def half() -> AsyncIterator[node_pb2.RestoreRequest]:
            yield node_pb2.RestoreRequest(options=node_pb2.RestoreOptions())
            yield node_pb2.RestoreRequest(chunk=GOOD)

        with pytest.raises(Exception, match="broke off before the end"):
            await node.control.Restore(half(), timeout=TIMEOUT_S)
        assert left(node) == set()


async def test_a_manager_that_cannot_start_leaves_nothing_of_the_cluster(node: Node):
    def broken(settings, name: str) -> list[str]:
        return ["/bin/false"] if name == "manager" else with_real_manager(settings, name)

    async with node.running(command=broken):
        with pytest.raises(Unavailable, match="the manager could not start"):
            await restore(node, GOOD)
        assert (await info(node)).state == "inactive"
        assert left(node) == set()
