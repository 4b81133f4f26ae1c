"""PlanChanges over its real wire: what calls would do, and that nothing is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count

import grpc
import pytest

from manager.controlapi import plan_answers, plans
from manager.controlapi.server import ControlServer
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from manager.store.store import Store
from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import specs_pb2, types_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub, add_ControlServicer_to_server
from shoal.model.enums import FailureAction, NodeAvailability, TaskState, UpdateOrder, UpdateState
from shoal.model.objects import Cluster, Service
from shoal.model.specs import ContainerSpec, PullOptions, TaskSpec
from shoal.model.types import (
    NetworkAttachmentConfig,
    Placement,
    ResourceRequirements,
    Resources,
    UpdateConfig,
    UpdateStatus,
)
from shoal.security.grpc_tls import local_channel
from shoal.wire.objects import to_pb
from tests.support.managing import HandClock, MemoryProposer, a_store, put_now, refusal, served
from tests.support.planning import SECOND_NS, a_network, a_node, a_port, a_service

GIB = 1 << 30


class Api:
    """A manager with three nodes, planned and run by hand."""

    def __init__(self, store: Store, proposer: MemoryProposer, clock: HandClock) -> None:
        self.store, self.proposer, self.clock = store, proposer, clock
        self.ids: Iterator[str] = (f"task{number:05}" for number in count())
        self.control: ControlStub

    def put(self, *rows) -> None:
        for row in rows:
            put_now(self.store, self.proposer, row)

    async def run(self) -> None:
        """Let the cluster come to rest."""
        while True:
            done = plan_round(self.store.view, EVERYTHING, now_ns=self.clock.now_ns(), ids=self.ids)
            await self.store.commit(done.changes)
            ready = [
                task
                for task in self.store.view.tasks
                if TaskState.ASSIGNED <= task.status.state < TaskState.RUNNING
            ]
            self.put(*(task.with_status(
                task.status.replaced(state=TaskState.RUNNING, applied_at_ns=self.clock.now_ns())
            ) for task in ready))  # fmt: skip
            if not done.changes and not ready:
                self.clock.advance(1)
                return

    async def plan(self, *calls: pb.PlannedCall) -> pb.PlanChangesResponse:
        """Ask, and see that the store is as it was."""
        rows = self.store.rows()
        answer = await self.control.PlanChanges(pb.PlanChangesRequest(calls=calls))
        assert self.store.rows() == rows
        return answer


@pytest.fixture
async def api(tmp_path) -> AsyncIterator[Api]:
    clock = HandClock()
    store, proposer = a_store([Cluster(id="c1"), *(a_node(f"n{i}") for i in (1, 2, 3))], clock)
    api = Api(store, proposer, clock)

    def add(server: grpc.aio.Server) -> None:
        add_ControlServicer_to_server(ControlServer(store, clock), server)

    async with served(add, tmp_path / "manager.sock") as at, local_channel(at.socket_path) as way:
        api.control = ControlStub(way)
        yield api


def creation(service: Service) -> pb.PlannedCall:
    spec = to_pb(service.spec, specs_pb2.ServiceSpec)
    return pb.PlannedCall(create_service=pb.CreateServiceRequest(spec=spec))


def change(service: Service, version: int = 0) -> pb.PlannedCall:
    request = pb.UpdateServiceRequest(
        service=service.id,
        version=types_pb2.Version(index=version),
        spec=to_pb(service.spec, specs_pb2.ServiceSpec),
    )
    return pb.PlannedCall(update_service=request)


def removal(name: str, version: int = 0) -> pb.PlannedCall:
    request = pb.RemoveServiceRequest(service=name, version=types_pb2.Version(index=version))
    return pb.PlannedCall(remove_service=request)


def a_spec(image: str = "nginx:1", *, memory: int = 0, **fields: object) -> TaskSpec:
    reserved = ResourceRequirements(reservations=Resources(memory_bytes=memory))
    return TaskSpec(runtime=ContainerSpec(image=image), resources=reserved, **fields)


def fields_of(plan: pb.ServicePlan) -> list[tuple[str, str, str]]:
    return [(one.path, one.old, one.new) for one in plan.fields]


async def test_a_creation_names_nodes_and_fields_and_makes_nothing(api):
    answer = await api.plan(creation(a_service(replicas=4)))

    (plan,) = answer.services
    assert [(one.slot, one.hostname, one.batch, one.state) for one in plan.made] == [
        (1, "host-n1", 1, types_pb2.TASK_STATE_RUNNING),
        (2, "host-n2", 1, types_pb2.TASK_STATE_RUNNING),
        (3, "host-n3", 1, types_pb2.TASK_STATE_RUNNING),
        (4, "host-n1", 1, types_pb2.TASK_STATE_RUNNING),
    ]
    assert (plan.version, plan.counts.created, plan.counts.waiting) == (0, 4, 0)
    assert ("Mode.Replicated.Replicas", "", "4") in fields_of(plan)
    assert ("TaskTemplate.ContainerSpec.Image", "", "nginx:1") in fields_of(plan)
    assert not any(one.task_id for one in plan.made), "the ids that they will have are not known"


async def test_a_rolling_update_is_told_slot_by_slot(api):
    config = UpdateConfig(parallelism=2, delay_ns=10 * SECOND_NS, monitor_ns=SECOND_NS)
    api.put(a_service(replicas=3, update=config))
    await api.run()
    before = {task.slot: task for task in api.store.view.tasks}
    answer = await api.plan(change(a_service(replicas=3, update=config, task=a_spec("nginx:2"))))

    (plan,) = answer.services
    assert fields_of(plan) == [("TaskTemplate.ContainerSpec.Image", "nginx:1", "nginx:2")]
    assert [(one.slot, one.batch, one.waited_ns // SECOND_NS) for one in plan.made] == [
        (1, 1, 0), (2, 1, 0), (3, 2, 10),
    ]  # fmt: skip
    assert [one.replaces_task_id for one in plan.made] == [before[slot].id for slot in (1, 2, 3)]
    assert {one.task_id for one in plan.stopped if one.replaced} == {
        task.id for task in before.values()
    }
    counts = plan.counts
    assert (counts.replaced, counts.created, counts.stopped, counts.batches) == (3, 0, 0, 2)
    assert plan.version == api.store.view.services.resolve("web").meta.version.index
    assert plan.update_status.message == "update completed"
    assert answer.waited_ns // SECOND_NS == 21, "the delay, and after it the monitoring"


async def test_what_cannot_be_placed_is_told_with_every_node(api):
    wish = a_spec(memory=9 * GIB, placement=Placement(constraints=("node.labels.zone==east",)))
    (plan,) = (await api.plan(creation(a_service(replicas=2, task=wish)))).services

    assert (plan.counts.created, plan.counts.waiting) == (2, 2)
    assert plan.made[0].reason == "no suitable node (insufficient resources on 3 nodes)"
    (waiting,) = plan.end.waiting
    assert (waiting.count, len(waiting.nodes)) == (2, 3)
    assert [one.filter for one in waiting.nodes[0].reasons] == ["resources", "constraint"]
    assert any("no node of the cluster has" in text for text in plan.warnings)


async def test_an_update_that_would_fail_says_so_and_still_what_was_asked(api):
    config = UpdateConfig(
        parallelism=1, monitor_ns=SECOND_NS, failure_action=FailureAction.ROLLBACK,
        progress_deadline_ns=30 * SECOND_NS,
    )  # fmt: skip
    api.put(a_service(replicas=2, update=config))
    await api.run()
    wish = a_spec("nginx:2", memory=9 * GIB)
    (plan,) = (await api.plan(change(a_service(replicas=2, update=config, task=wish)))).services

    assert plan.taken_back
    assert ("TaskTemplate.ContainerSpec.Image", "nginx:1", "nginx:2") in fields_of(plan)
    assert plan.update_status.message == "rollback completed"
    assert [one.given_up for one in plan.made] == [True, False], "the slot, and back again"
    assert plan.counts.waiting == 0


async def test_refusals_are_answers_and_the_other_calls_are_planned(api):
    api.put(a_service("old", ports=(a_port(80, 8080),)))
    await api.run()
    version = api.store.view.services.resolve("old").meta.version.index
    lost = a_spec(networks=(NetworkAttachmentConfig(target="nowhere"),))
    answer = await api.plan(
        creation(a_service("one", ports=(a_port(80, 8080),))),
        creation(a_service("two", task=lost)),
        creation(a_service("old")),
        change(a_service("old", replicas=1), version - 1),
        removal("none"),
        pb.PlannedCall(create_service=pb.CreateServiceRequest()),
        creation(a_service("fine", replicas=1)),
    )

    codes = [one.code for one in answer.answers]
    assert codes == ["invalid_argument", "not_found", "name_conflict", "sequence_conflict",
                     "not_found", "invalid_argument", ""]  # fmt: skip
    texts = [one.refusal for one in answer.answers]
    assert "8080" in texts[0]
    assert "nowhere" in texts[1]
    assert f"read at version {version - 1}, now at {version}" in texts[3]
    assert [plan.name for plan in answer.services] == ["fine"]
    assert answer.services[0].counts.created == 1


async def test_a_removal_gives_room_to_others(api):
    api.put(a_service("big", replicas=3, task=a_spec(memory=6 * GIB)))
    await api.run()
    api.put(a_service("next", replicas=2, task=a_spec(memory=5 * GIB)))
    await api.run()
    answer = await api.plan(removal("big"))

    (plan,) = answer.services
    assert (plan.removed, plan.counts.stopped, len(plan.made)) == (True, 3, 0)
    (other,) = answer.others
    assert other.name == "next"
    assert [(one.slot, one.hostname) for one in other.placed] == [(1, "host-n1"), (2, "host-n2")]


async def test_what_happens_anyway_is_no_part_of_the_plan(api):
    """The other service is about to be started: with the change or without it."""
    here = a_spec(placement=Placement(constraints=("node.hostname==host-n3",)))
    api.put(a_service("other", replicas=2, task=here))
    answer = await api.plan(creation(a_service("web", replicas=1)))

    assert [plan.name for plan in answer.services] == ["web"]
    assert not answer.others


async def test_the_same_spec_again_changes_nothing(api):
    api.put(a_service(replicas=2))
    await api.run()
    (plan,) = (await api.plan(change(a_service(replicas=2)))).services
    assert not plan.fields
    assert not plan.made
    assert not plan.stopped


async def test_calls_see_what_those_before_them_write(api):
    network = to_pb(a_network("net").spec, specs_pb2.NetworkSpec)
    wish = a_spec(networks=(NetworkAttachmentConfig(target="net"),))
    answer = await api.plan(
        pb.PlannedCall(create_network=pb.CreateNetworkRequest(spec=network)),
        creation(a_service(replicas=1, task=wish)),
        change(a_service("web", replicas=2, task=wish)),
    )
    assert not any(one.refusal for one in answer.answers)
    (plan,) = answer.services
    assert [one.service_id for one in answer.answers] == ["", plan.service_id, plan.service_id]
    assert ("Mode.Replicated.Replicas", "", "2") in fields_of(plan)
    assert [one.hostname for one in plan.made] == ["host-n1", "host-n2"]


async def test_credentials_are_named_and_not_shown(api):
    runtime = ContainerSpec(image="nginx:1", pull_options=PullOptions(registry_auth="s3cr3t"))
    answer = await api.plan(creation(a_service(task=TaskSpec(runtime=runtime))))
    assert b"s3cr3t" not in answer.SerializeToString()
    assert ("TaskTemplate.ContainerSpec.PullOptions.RegistryAuth", "", "(not shown)") in fields_of(
        answer.services[0]
    )


async def test_readers_are_warned_of_what_the_plan_takes_for_granted(api):
    first = UpdateConfig(parallelism=1, order=UpdateOrder.START_FIRST, monitor_ns=SECOND_NS)
    host = (a_port(80, 8080, host=True),)
    service = a_service(replicas=1, update=first, ports=host)
    api.put(service)
    await api.run()
    (task,) = api.store.view.tasks
    api.put(task.with_status(task.status.replaced(state=TaskState.FAILED)))
    await api.run()
    stored = api.store.view.services.resolve("web")
    api.put(stored.replaced(update_status=UpdateStatus(state=UpdateState.PAUSED)))
    (plan,) = (await api.plan(change(a_service(replicas=1, update=first, ports=host,
                                               task=a_spec("nginx:2"))))).services  # fmt: skip
    assert list(plan.warnings) == [
        "its update is paused: the change resumes it",
        "1 of its tasks that are kept have failed: the plan takes it that none will",
        "host-mode ports: its tasks are replaced stop-first, although start-first is set",
    ]


async def test_a_plan_is_bounded(api, monkeypatch):
    for number in (0, plans.CALLS_MAX + 1):
        calls = [removal("web")] * number
        text = await refusal(api.plan(*calls))
        assert text == f"INVALID_ARGUMENT calls: {number}, from 1 to 100 are planned"

    monkeypatch.setattr(plan_answers, "TASKS_MAX", 5)
    (plan,) = (await api.plan(creation(a_service(replicas=12)))).services
    assert (len(plan.made), plan.tasks_left_out, plan.counts.created) == (5, 7, 12)

    monkeypatch.setattr(plan_answers, "ANSWER_BYTES_MAX", 1)
    wish = a_spec(memory=9 * GIB)
    (plan,) = (await api.plan(creation(a_service(replicas=1, task=wish)))).services
    assert (len(plan.end.waiting[0].nodes), plan.end.nodes_left_out) == (0, 3)

    monkeypatch.setattr(plans, "PLAN_S", 0)
    answer = await api.plan(creation(a_service(replicas=1)))
    assert answer.broken_off == plan_answers.BROKEN_OFF
    assert not answer.services[0].made


async def test_only_a_few_plans_wait(api, monkeypatch):
    monkeypatch.setattr(plans, "WAITING_MAX", 1)
    calls = [creation(a_service(replicas=2000))]
    request = pb.PlanChangesRequest(calls=calls)
    both = await asyncio.gather(
        *(api.control.PlanChanges(request) for _ in range(2)), return_exceptions=True
    )
    (made,) = [one for one in both if isinstance(one, pb.PlanChangesResponse)]
    (refused,) = [one for one in both if isinstance(one, grpc.aio.AioRpcError)]
    assert len(made.services[0].made) == 2000
    assert refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_nodes_that_take_no_tasks_get_none_in_a_plan(api):
    api.put(a_node("n2", availability=NodeAvailability.DRAIN))
    (plan,) = (await api.plan(creation(a_service(replicas=2)))).services
    assert [one.hostname for one in plan.made] == ["host-n1", "host-n3"]


async def test_a_removal_with_an_old_version_is_refused_and_names_both(api):
    api.put(a_service())
    version = api.store.view.services.resolve("web").meta.version.index
    api.put(a_service(replicas=5))
    old = types_pb2.Version(index=version)
    request = pb.RemoveServiceRequest(service="web", version=old)
    text = await refusal(api.control.RemoveService(request))
    assert text.startswith("ABORTED service: update out of sequence")
    assert f"read at version {version}, now at {version + 1}" in text
    new = types_pb2.Version(index=version + 1)
    await api.control.RemoveService(pb.RemoveServiceRequest(service="web", version=new))
