"""The Stacks service over its real wire."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
import pytest

from manager.controlapi.stack_calls import StacksServer
from manager.store.store import Commit, Store, TransactionTooLarge
from manager.store.view import View
from shoal.api.v1 import specs_pb2, types_pb2
from shoal.api.v1 import stacks_pb2 as pb
from shoal.api.v1.stacks_pb2_grpc import StacksStub, add_StacksServicer_to_server
from shoal.model.objects import StoreEntry
from shoal.model.specs import StackSpec
from shoal.security.grpc_tls import local_channel
from shoal.wire.objects import to_pb
from tests.support.managing import HandClock, MemoryProposer, a_store, refusal, served
from tests.support.planning import a_node
from tests.unit.manager.controlapi.test_stacks import a_member, a_stack


class Api:
    def __init__(self, store: Store, proposer: MemoryProposer, stub: StacksStub) -> None:
        self.store, self.proposer, self.stub = store, proposer, stub

    @property
    def view(self) -> View:
        return self.store.view

    async def deploy(self, spec: StackSpec, **fields) -> pb.DeployStackResponse:
        message = to_pb(spec, specs_pb2.StackSpec)
        return await self.stub.DeployStack(pb.DeployStackRequest(spec=message, **fields))


@pytest.fixture
async def api(tmp_path) -> AsyncIterator[Api]:
    clock = HandClock()
    store, proposer = a_store([a_node("n1")], clock)

    def add(server: grpc.aio.Server) -> None:
        add_StacksServicer_to_server(StacksServer(store, clock), server)

    async with (
        served(add, tmp_path / "manager.sock") as at,
        local_channel(at.socket_path) as channel,
    ):
        yield Api(store, proposer, StacksStub(channel))


async def test_deployed_twice_and_shown(api):
    done = await api.deploy(a_stack(secret=b"HIDDENCONTENT"))
    assert done.revision == 1
    assert [one.name for one in done.changes][-2:] == ["st_db", "st_web"]
    assert len(done.service_ids) == 2
    version = api.view.version
    again = await api.deploy(a_stack(secret=b"HIDDENCONTENT"))
    assert (again.revision, list(again.changes)) == (0, [])
    assert again.service_ids == done.service_ids
    assert api.view.version == version
    shown = await api.stub.GetStack(pb.GetStackRequest(stack="st"))
    assert b"HIDDENCONTENT" not in shown.SerializeToString()
    assert len(shown.stack.spec.services) == 2
    (listed,) = (await api.stub.ListStacks(pb.ListStacksRequest())).stacks
    assert (listed.name, listed.services, listed.networks) == ("st", 2, 1)
    assert listed.revision == 1


async def test_history_and_rollback(api):
    await api.deploy(a_stack())
    await api.deploy(a_stack(secret=b"s2"))
    done = await api.stub.RollBackStack(pb.RollBackStackRequest(stack="st"))
    assert done.revision == 3
    answer = await api.stub.ListStackRevisions(pb.ListStackRevisionsRequest(stack="st"))
    assert [(one.revision, one.rolled_back_to) for one in answer.revisions] == [
        (3, 1), (2, 0), (1, 0),
    ]  # fmt: skip
    assert not answer.revisions[0].spec.services


async def test_a_plan_says_what_would_change_and_where_tasks_go_and_changes_nothing(api):
    message = to_pb(a_stack(), specs_pb2.StackSpec)
    version = api.view.version
    answer = await api.stub.PlanStack(pb.DeployStackRequest(spec=message))
    assert len(answer.deployment.changes) == 5
    made = {one.name: [task.node_id for task in one.made] for one in answer.plan.services}
    assert made == {"st_db": ["n1"], "st_web": ["n1"]}
    assert api.view.version == version
    await api.deploy(a_stack())
    again = await api.stub.PlanStack(pb.DeployStackRequest(spec=message))
    assert not again.deployment.changes
    assert not again.HasField("plan")


async def test_removal(api):
    await api.deploy(a_stack())
    answer = await api.stub.RemoveStack(pb.RemoveStackRequest(stack="st"))
    assert {one.kind for one in answer.changes} == {"service", "network", "secret", "config"}
    assert not (await api.stub.ListStacks(pb.ListStacksRequest())).stacks
    assert "nothing found in stack: st" in await refusal(
        api.stub.RemoveStack(pb.RemoveStackRequest(stack="st"))
    )


async def test_contents_go_first_where_all_would_be_too_large(api, monkeypatch):
    propose, refused = api.proposer.propose, []

    async def small(entry: StoreEntry) -> Commit:
        kinds: Sequence[str] = [type(action.object).__name__ for action in entry.actions]
        if "Service" in kinds and "Secret" in kinds:
            refused.append(kinds)
            raise TransactionTooLarge("too large")
        return await propose(entry)

    monkeypatch.setattr(api.proposer, "propose", small)
    done = await api.deploy(a_stack())
    assert len(refused) == 1
    assert done.revision == 1
    assert len(api.view.services) == 2
    assert len(api.view.secrets) == 1


async def test_refusals(api):
    assert "spec: must be given" in await refusal(api.stub.DeployStack(pb.DeployStackRequest()))
    large = a_stack(*(a_member(f"s{n}", image="x" * 500) for n in range(90)))
    large = large.replaced(source="y" * 250_000)
    assert "at most 262144" in await refusal(api.deploy(large))
    await api.deploy(a_stack())
    old = types_pb2.Version(index=1)
    assert "out of sequence" in await refusal(api.deploy(a_stack(secret=b"s2"), version=old))
    assert "revision 7: there are 1" in await refusal(
        api.stub.GetStack(pb.GetStackRequest(stack="st", revision=7))
    )
    assert "revision before this one is not there" in await refusal(
        api.stub.RollBackStack(pb.RollBackStackRequest(stack="st"))
    )
