"""Revisions of services: numbered without gaps, ten of them, gone with the service."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.controlapi.services import (
    create_service,
    remove_service,
    roll_back_service,
    update_service,
)
from manager.orchestrator.jobs import plan as jobs
from manager.orchestrator.reaper import plan as reaper
from manager.orchestrator.revisions import KEPT, revisions_of
from manager.orchestrator.update import plan as update
from shoal.errors import FailedPrecondition, InvalidArgument, NotFound
from shoal.model.enums import FailureAction, RevisionCause, TaskState, UpdateState
from shoal.model.objects import Revision, Secret
from shoal.model.specs import ContainerSpec, ReplicatedJobMode, SecretSpec, TaskSpec
from shoal.model.types import Annotations, FileReference, UpdateConfig, UpdateStatus
from tests.support.planning import START_NS, Cell, a_node, a_service, a_task

CREATED, UPDATED = RevisionCause.CREATED, RevisionCause.UPDATED
BACK, FAILED_BACK = RevisionCause.ROLLED_BACK, RevisionCause.FAILED_BACK


def spec(number: int):
    return a_service("web", task=TaskSpec(runtime=ContainerSpec(image=f"nginx:{number}"))).spec


def created(number: int = 1) -> Cell:
    cell = Cell()
    cell.commit(create_service(cell.tables, spec(number), service_id="web", now_ns=START_NS))
    return cell


def change(cell: Cell, number: int) -> None:
    cell.commit(update_service(cell.tables, "web", spec(number), version=0, now_ns=START_NS))


def reap(cell: Cell) -> None:
    cell.settle(lambda view: reaper.plan(view, ["web"], now_ns=START_NS, ids=cell.ids))


def go_back(cell: Cell, to: int = 0) -> None:
    cell.commit(roll_back_service(cell.tables, "web", version=0, now_ns=START_NS, to=to))


def history(cell: Cell) -> list[tuple[int, str, RevisionCause, int]]:
    """Newest first: number, image, cause, revision that was gone back to."""
    return [
        (one.number, image(one), one.cause, one.of)
        for one in revisions_of(cell.tables, cell.service())
    ]


def image(row: Revision) -> str:
    runtime = row.spec.task.runtime
    assert isinstance(runtime, ContainerSpec)
    return runtime.image


def test_each_change_of_the_spec_is_a_revision_and_a_rollback_names_what_it_went_back_to():
    cell = created()
    change(cell, 2)
    change(cell, 2)
    change(cell, 3)
    go_back(cell)
    go_back(cell, to=1)
    assert history(cell) == [
        (5, "nginx:1", BACK, 1),
        (4, "nginx:2", BACK, 2),
        (3, "nginx:3", UPDATED, 0),
        (2, "nginx:2", UPDATED, 0),
        (1, "nginx:1", CREATED, 0),
    ]
    service = cell.service()
    assert service.previous_spec == spec(2), "a rollback without a number undoes that with one"
    assert service.update_status is not None
    assert service.update_status.state is UpdateState.ROLLBACK_STARTED


def test_the_last_ten_are_kept():
    cell = created()
    for number in range(2, 15):
        change(cell, number)
    assert [one[0] for one in history(cell)] == list(range(14, 4, -1))
    reap(cell)
    assert len(cell.tables.revisions) == KEPT
    with pytest.raises(NotFound, match="revision 4 of service web is not kept: 5 to 14 are"):
        go_back(cell, to=4)
    go_back(cell, to=5)
    assert cell.service().spec == spec(5)


def test_the_spec_in_force_is_nothing_to_go_back_to():
    cell = created()
    with pytest.raises(FailedPrecondition, match="has the spec of revision 1 already"):
        go_back(cell, to=1)


def test_what_a_revision_refers_to_may_be_gone():
    cell = Cell([Secret(id="s1", spec=SecretSpec(Annotations("key"), data=b"x"))])
    reference = FileReference(name="key", target="key")
    with_secret = spec(1).replaced(
        task=TaskSpec(runtime=ContainerSpec(image="nginx:1", secrets=(reference,)))
    )
    cell.commit(create_service(cell.tables, with_secret, service_id="web", now_ns=START_NS))
    change(cell, 2)
    secret = cell.tables.secrets.get("s1")
    assert secret is not None
    cell.remove(secret)
    with pytest.raises(InvalidArgument, match="secret not found: key"):
        go_back(cell, to=1)


def test_a_service_from_before_gets_its_history_with_the_next_change():
    cell = Cell([a_service("web", task=spec(1).task)])
    assert history(cell) == []
    with pytest.raises(NotFound, match="none is, before its next change"):
        go_back(cell, to=1)
    change(cell, 2)
    assert history(cell) == [(2, "nginx:2", UPDATED, 0), (1, "nginx:1", CREATED, 0)]


def test_an_update_that_goes_back_by_itself_is_a_revision():
    cell = created()
    node = a_node("n1")
    config = UpdateConfig(parallelism=1, failure_action=FailureAction.ROLLBACK)
    changed = spec(2).replaced(update=config)
    cell.commit(update_service(cell.tables, "web", changed, version=0, now_ns=START_NS))
    version = cell.service().spec_version.index
    failed = a_task(
        "t2", state=TaskState.FAILED, version=version, spec=changed.task, replaces_task_id="t1",
        at_ns=START_NS,
    )  # fmt: skip
    old = a_task("t1", version=1, spec=spec(1).task, desired=TaskState.SHUTDOWN)
    status = UpdateStatus(state=UpdateState.UPDATING, started_at_ns=START_NS)
    cell.put(node, old, failed, cell.service().replaced(update_status=status))
    cell.settle(lambda view: update.plan(view, ["web"], now_ns=START_NS, ids=cell.ids))
    assert history(cell)[0] == (3, "nginx:1", FAILED_BACK, 1)
    assert cell.service().previous_spec is None


def test_revisions_go_with_their_service():
    cell = created()
    for number in range(2, 14):
        change(cell, number)
    cell.commit(create_service(cell.tables, spec(1).replaced(annotations=Annotations("other")),
                               service_id="other", now_ns=START_NS))  # fmt: skip
    cell.commit(remove_service(cell.tables, "web"))
    reap(cell)
    assert [one.id for one in cell.tables.revisions] == ["other.1"]


def test_revisions_go_with_a_job_whose_time_is_over():
    cell = Cell([a_node("n1")])
    job = spec(1).replaced(mode=ReplicatedJobMode(1, 1), ttl_after_finish_ns=0)
    cell.commit(create_service(cell.tables, job, service_id="web", now_ns=START_NS))
    done = a_task("t0", slot=0, state=TaskState.COMPLETE, job_iteration=0, at_ns=START_NS)
    cell.put(done.replaced(desired_state=TaskState.COMPLETE))
    cell.settle(lambda view: jobs.plan(view, ["web"], now_ns=START_NS, ids=cell.ids))
    assert cell.tables.services.get("web") is None
    reap(cell)
    assert list(cell.tables.revisions) == []


@settings(deadline=None)
@given(steps=st.lists(st.one_of(st.integers(1, 3), st.just("back"), st.integers(-14, -1))))
def test_any_order_of_changes(steps):
    """Against a list of all specs there ever were: a positive step is an update to that image, a
    negative one goes back to that many revisions ago."""
    cell, ever, previous = created(), [1], None
    for step in steps:
        if step == "back":
            if previous is None:
                continue
            go_back(cell)
            wanted = previous
        elif step > 0:
            change(cell, step)
            wanted = step
        else:
            number = len(ever) + step
            kept = max(1, len(ever) - KEPT + 1)
            if number < kept or ever[number - 1] == ever[-1]:
                with pytest.raises((NotFound, FailedPrecondition)):
                    go_back(cell, to=max(1, number)) if number > 0 else go_back(cell, to=99)
                continue
            go_back(cell, to=number)
            wanted = ever[number - 1]
        previous = ever[-1]
        if wanted != ever[-1]:
            ever.append(wanted)
        expected = list(enumerate((f"nginx:{one}" for one in ever), start=1))[-KEPT:]
        assert [one[:2] for one in history(cell)] == expected[::-1]
        reap(cell)
        assert len(cell.tables.revisions) == len(expected)
        assert cell.service().spec == spec(ever[-1])
