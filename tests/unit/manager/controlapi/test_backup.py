"""A backup is the whole state of one moment, however it changes meanwhile and whoever is slow."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from manager.controlapi.backup import BACKUPS_MAX
from manager.controlapi.server import ControlServer
from manager.storage.backup import read_backup
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.control_pb2_grpc import ControlStub, add_ControlServicer_to_server
from shoal.errors import FailedPrecondition
from shoal.model.objects import Cluster, Secret
from shoal.model.specs import SecretSpec
from shoal.model.types import RootCa
from shoal.security.grpc_tls import MESSAGE_BYTES_MAX, local_channel
from shoal.wire.objects import object_from_bytes
from tests.support.managing import DEADLINE_S, ROOT, HandClock, a_store, put_now, refusal, served
from tests.support.planning import a_node, a_service

CLUSTER = Cluster(id="c1", root_ca=RootCa(certificate=ROOT.certificate_pem, key=ROOT.key_pem))
SECRET = Secret(id="x1", spec=SecretSpec(data=b"hush"))


@asynccontextmanager
async def a_manager(directory, rows, **options) -> AsyncIterator[tuple]:
    clock = HandClock()
    store, proposer = a_store(rows, clock)

    def add(server: grpc.aio.Server) -> None:
        add_ControlServicer_to_server(ControlServer(store, clock, **options), server)

    async with served(add, directory / "m.sock") as at, local_channel(at.socket_path) as channel:
        yield store, proposer, ControlStub(channel)


def backup(control: ControlStub):
    return control.BackupCluster(pb.BackupClusterRequest(), timeout=30)


async def is_whole(call) -> bool:
    try:
        return [answer async for answer in call][-1].sha256 != b""
    except grpc.aio.AioRpcError:
        return False


async def test_a_backup_holds_everything_at_one_version(tmp_path):
    rows = [CLUSTER, SECRET, *(a_service(f"s{number}") for number in range(500))]
    async with a_manager(tmp_path, rows, term=7) as (store, proposer, control):
        before, version = store.rows(), store.view.version
        answers = []
        async for answer in backup(control):
            answers.append(answer)
            put_now(store, proposer, a_service(f"later{len(answers)}"))
            put_now(store, proposer, SECRET.replaced(spec=SecretSpec(data=b"changed")))
        first, last = answers[0], answers[-1]
        assert (first.summary.cluster_id, first.summary.objects) == ("c1", len(rows))
        assert first.summary.version.index == version
        content = b"".join(answer.chunk for answer in answers)
        assert last.sha256 == hashlib.sha256(content).digest()
        assert last.objects == len(rows)
        (tmp_path / "b").write_bytes(content)
        found = read_backup(tmp_path / "b")
        assert (found.manifest.index, found.manifest.term) == (version, 7)
        assert found.manifest.created_ns == first.summary.created_at_ns
        assert tuple(object_from_bytes(one.data) for one in found.records()) == before
        assert store.view.version > version


async def test_no_message_is_too_large_and_progress_only_rises(tmp_path):
    big = [Secret(id=f"x{n}", spec=SecretSpec(data=b"s" * 400_000)) for n in range(20)]
    async with a_manager(tmp_path, [CLUSTER, *big]) as (_, _, control):
        answers = [answer async for answer in backup(control)]
        assert len(answers) > 8
        assert max(answer.ByteSize() for answer in answers) < MESSAGE_BYTES_MAX // 2
        counts = [answer.objects for answer in answers]
        assert counts == sorted(counts)
        assert counts[-1] == 21


async def test_only_a_few_are_made_at_a_time_and_ends_are_noticed(tmp_path):
    big = [Secret(id=f"x{n}", spec=SecretSpec(data=b"s" * 500_000)) for n in range(40)]
    async with a_manager(tmp_path, [CLUSTER, *big]) as (_, _, control):
        stalled = [backup(control) for _ in range(BACKUPS_MAX)]
        for call in stalled:
            await call.read()
        assert "wait for their end" in await refusal(backup(control).read())
        for call in stalled:
            call.cancel()

        async with asyncio.timeout(DEADLINE_S):
            while not await is_whole(backup(control)):
                await asyncio.sleep(0.02)


async def test_a_manager_without_a_cluster_has_no_backup(tmp_path):
    async with a_manager(tmp_path, []) as (_, _, control):
        assert "not initialised" in await refusal(backup(control).read())


async def test_handing_over_names_the_node(tmp_path):
    asked = []

    def hand_over(node_id: str) -> str:
        asked.append(node_id)
        if node_id == "n2":
            raise FailedPrecondition("it cannot lead")
        return node_id or "n9"

    rows = [CLUSTER, a_node("n1"), a_node("n2")]
    async with a_manager(tmp_path, rows, hand_over=hand_over) as (_, _, control):
        answer = await control.TransferLeadership(pb.TransferLeadershipRequest(node="n1"))
        assert answer.node_id == "n1"
        assert (await control.TransferLeadership(pb.TransferLeadershipRequest())).node_id == "n9"
        call = control.TransferLeadership(pb.TransferLeadershipRequest(node="n2"))
        assert "cannot lead" in await refusal(call)
        call = control.TransferLeadership(pb.TransferLeadershipRequest(node="nobody"))
        assert "not found" in await refusal(call)
        assert asked == ["n1", "", "n2"]


async def test_where_others_choose_the_leader_it_says_so(tmp_path):
    async with a_manager(tmp_path, [CLUSTER]) as (_, _, control):
        call = control.TransferLeadership(pb.TransferLeadershipRequest())
        assert "etcd does" in await refusal(call)
