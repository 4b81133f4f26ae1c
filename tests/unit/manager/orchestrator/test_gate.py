"""Services that depend on others begin when those are there, and are never held after that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.orchestrator.gate.plan import is_held, waits_of
from manager.reconcile.plan import Dirty, plan_round
from shoal.model.defaults import is_wanted
from shoal.model.enums import DependencyCondition, RestartCondition, TaskState
from shoal.model.modes import goal_of
from shoal.model.objects import Service
from shoal.model.specs import GlobalMode, ReplicatedJobMode, ReplicatedMode
from shoal.model.types import ContainerStatus, Placement, RestartPolicy, ServiceDependency
from tests.support.planning import START_NS, Cell, a_node, a_service

STARTED, HEALTHY, COMPLETED = DependencyCondition


class Cluster(Cell):
    """Tables whose tasks go as far as a test says."""

    def __init__(self, *services: Service) -> None:
        super().__init__([a_node("n1"), a_node("n2"), *services])
        self.replan()

    def replan(self) -> None:
        """Plan until nothing more is to be done at this moment."""
        dirty = Dirty(everything=True)
        self.settle(lambda view: plan_round(view, dirty, now_ns=self.now_ns, ids=self.ids))

    def bring(self, service_id: str, state: TaskState) -> None:
        """Every wanted task of a service reports a state."""
        goal = goal_of(self.service(service_id).spec.mode)
        for task in self.tasks(service_id):
            if task.desired_state <= goal and task.status.state < state:
                self.report(task.id, state)
        self.replan()

    def change(self, service_id: str, **changes: object) -> None:
        service = self.service(service_id)
        spec = service.spec.replaced(**changes)
        self.put(service.replaced(spec=spec, previous_spec=service.spec, update_status=None))
        self.replan()

    def held(self, service_id: str) -> bool:
        return is_held(self.tables, self.service(service_id))


def depending(
    condition: DependencyCondition, *, on: str = "db", name: str = "web", **spec: object
) -> Service:
    service = a_service(name, replicas=2)
    dependency = ServiceDependency(service=on, condition=condition)
    return service.replaced(spec=service.spec.replaced(depends_on=(dependency,), **spec))


@pytest.mark.parametrize(
    ("condition", "too_early", "enough"),
    [
        (STARTED, TaskState.READY, TaskState.STARTING),
        (HEALTHY, TaskState.STARTING, TaskState.RUNNING),
    ],
)
def test_first_tasks_are_made_when_the_other_is_there(condition, too_early, enough):
    cluster = Cluster(a_service("db", replicas=2), depending(condition))
    cluster.replan()
    cluster.bring("db", too_early)
    assert cluster.tasks("web") == []
    cluster.bring("db", enough)
    assert len(cluster.tasks("web")) == 2


def test_all_tasks_of_the_other_count():
    cluster = Cluster(a_service("db", replicas=2), depending(HEALTHY))
    cluster.replan()
    first = cluster.tasks("db")[0]
    cluster.report(first.id, TaskState.RUNNING)
    cluster.replan()
    web = cluster.service("web")
    assert list(waits_of(cluster.tables, web)) == [
        "waits for service db to run and be healthy: 1 of 2 tasks"
    ]
    assert cluster.tasks("web") == []


def test_a_job_completes_before_the_next_begins():
    job = a_service("db")
    mode = ReplicatedJobMode(max_concurrent=1, total_completions=2)
    job = job.replaced(spec=job.spec.replaced(mode=mode))
    cluster = Cluster(job, depending(COMPLETED))
    cluster.replan()
    cluster.bring("db", TaskState.RUNNING)
    assert cluster.tasks("web") == []
    cluster.bring("db", TaskState.COMPLETE)
    assert cluster.held("web")
    cluster.bring("db", TaskState.COMPLETE)
    assert len(cluster.tasks("web")) == 2


def test_a_service_that_ends_completes_too():
    db = a_service("db", replicas=1)
    task = db.spec.task.replaced(restart=RestartPolicy(condition=RestartCondition.NONE))
    cluster = Cluster(db.replaced(spec=db.spec.replaced(task=task)), depending(COMPLETED))
    cluster.replan()
    cluster.bring("db", TaskState.RUNNING)
    assert cluster.tasks("web") == []
    cluster.bring("db", TaskState.COMPLETE)
    assert len(cluster.tasks("web")) == 2


def test_one_that_is_started_again_and_again_is_there_when_it_runs():
    cluster = Cluster(a_service("db", replicas=1), depending(HEALTHY))
    cluster.bring("db", TaskState.COMPLETE)
    assert cluster.held("web")
    cluster.advance(10)
    cluster.replan()
    cluster.bring("db", TaskState.RUNNING)
    assert not cluster.held("web")


def test_what_was_started_counts_as_started_though_it_failed():
    db = a_service("db", replicas=1)
    task = db.spec.task.replaced(restart=RestartPolicy(condition=RestartCondition.NONE))
    cluster = Cluster(db.replaced(spec=db.spec.replaced(task=task)), depending(STARTED))
    container = ContainerStatus(container_id="c", started_at_ns=START_NS, exit_code=1)
    cluster.report(cluster.tasks("db")[0].id, TaskState.FAILED, container=container)
    cluster.replan()
    assert len(cluster.tasks("web")) == 2


@pytest.mark.parametrize("mode", [ReplicatedMode(replicas=2), GlobalMode(),
                                  ReplicatedJobMode(total_completions=2)])  # fmt: skip
def test_every_mode_is_held(mode):
    cluster = Cluster(a_service("db", replicas=1), depending(HEALTHY, mode=mode))
    cluster.replan()
    assert cluster.tasks("web") == []
    cluster.bring("db", TaskState.RUNNING)
    assert len(cluster.tasks("web")) == 2


def test_what_has_begun_is_not_held_when_the_other_fails():
    cluster = Cluster(a_service("db", replicas=1), depending(HEALTHY))
    cluster.replan()
    cluster.bring("db", TaskState.RUNNING)
    cluster.bring("web", TaskState.RUNNING)
    cluster.bring("db", TaskState.FAILED)
    cluster.change("web", mode=ReplicatedMode(replicas=4))
    assert len([one for one in cluster.tasks("web") if is_wanted(one)]) >= 4


def test_an_update_waits_for_that_of_the_other():
    cluster = Cluster(a_service("db", replicas=1), depending(HEALTHY))
    cluster.replan()
    cluster.bring("db", TaskState.RUNNING)
    cluster.bring("web", TaskState.RUNNING)
    newer = cluster.service("db").spec.task.replaced(force_update=1)
    cluster.change("db", task=newer)
    cluster.change("web", task=newer)
    web = cluster.service("web")
    assert web.update_status is None
    assert all(one.spec_version != web.spec_version for one in cluster.tasks("web"))
    for task in cluster.tasks("db"):
        if task.desired_state > TaskState.RUNNING:
            cluster.report(task.id, TaskState.SHUTDOWN)
    cluster.replan()
    cluster.bring("db", TaskState.RUNNING)
    assert cluster.service("web").update_status is not None


def test_a_change_that_replaces_no_task_is_not_waited_for():
    cluster = Cluster(a_service("db", replicas=1), depending(HEALTHY))
    cluster.bring("db", TaskState.RUNNING)
    cluster.bring("web", TaskState.RUNNING)
    task = cluster.service("db").spec.task
    cluster.change("db", task=task.replaced(placement=Placement(constraints=("node.id != n9",))))
    assert cluster.tasks("db")[0].spec_version != cluster.service("db").spec_version
    cluster.change("web", task=task.replaced(force_update=1))
    assert cluster.service("web").update_status is not None


def test_a_dependency_that_is_gone_holds_nobody():
    cluster = Cluster(depending(HEALTHY))
    cluster.replan()
    assert len(cluster.tasks("web")) == 2


def test_those_that_wait_are_looked_at_when_the_other_changes_and_a_moment_later():
    cluster = Cluster(a_service("db", replicas=1), depending(HEALTHY))
    dirty = Dirty(services=frozenset({"db"}))
    found = plan_round(cluster.tables, dirty, now_ns=START_NS, ids=cluster.ids)
    assert [service_id for service_id, _ in found.wakes] == ["web"]


@given(
    st.dictionaries(st.sampled_from("abcde"), st.sets(st.sampled_from("abcde"), max_size=2)),
    st.sampled_from([STARTED, HEALTHY]),
)
def test_a_graph_without_cycles_comes_up_in_order(graph, condition):
    order = sorted(graph)
    services = []
    for index, name in enumerate(order):
        needs = sorted(one for one in graph[name] if one in order[:index])
        service = a_service(name, replicas=1)
        wishes = tuple(ServiceDependency(service=one, condition=condition) for one in needs)
        services.append(service.replaced(spec=service.spec.replaced(depends_on=wishes)))
    cluster = Cluster(*services)
    cluster.replan()
    for _ in order:
        for service in services:
            needs = [one.service for one in service.spec.depends_on]
            if cluster.tasks(service.id):
                assert all(
                    task.status.state is TaskState.RUNNING
                    for need in needs
                    for task in cluster.tasks(need)
                )
        for name in order:
            cluster.bring(name, TaskState.RUNNING)
    assert all(len(cluster.tasks(name)) == 1 for name in order)
