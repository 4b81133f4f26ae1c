"""When a service has converged, and what is shown."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.clock import NS_PER_S
from shoal.model.enums import RestartCondition, TaskState, UpdateState
from shoal.model.specs import GlobalMode
from shoal.model.types import RestartPolicy, UpdateConfig, UpdateStatus
from swarmctl.progress.core import (
    BARS_MAX,
    Line,
    Look,
    Outcome,
    Wait,
    step,
    tasks_by_slot,
)
from swarmctl.progress.display import PlainDisplay, bar_line, make_display
from tests.unit.swarmctl.rows import NODE_A, NODE_B, a_service, a_spec, a_task

LIVE = frozenset({NODE_A})
BOTH = frozenset({NODE_A, NODE_B})


def look(*tasks, replicas=2, monitor_s=5, state=None, restart=None, message=""):
    spec = a_spec(replicas=replicas, update=UpdateConfig(monitor_ns=int(monitor_s * NS_PER_S)))
    spec = spec.replaced(task=spec.task.replaced(restart=restart))
    status = None if state is None else UpdateStatus(state=state, message=message)
    return Look(a_service(spec=spec, update_status=status), tasks, LIVE)


def texts(wait: Wait) -> dict[str, str]:
    return {line.key: line.text for line in wait.lines}


RUNNING = (a_task(1), a_task(2))


def test_converged_after_the_monitor_period():
    wait = step(Wait(), look(*RUNNING), 100.0)
    assert texts(wait)["verify"] == "Waiting 6 seconds to verify that tasks are stable..."
    wait = step(wait, look(*RUNNING), 104.2)
    assert texts(wait)["verify"] == "Waiting 1 seconds to verify that tasks are stable..."
    assert wait.outcome is None
    wait = step(wait, look(*RUNNING), 105.0)
    assert wait.outcome is Outcome.CONVERGED
    assert texts(wait)["verify"] == "Service web converged"


def test_a_failure_while_verifying_starts_over():
    wait = step(Wait(), look(*RUNNING), 100.0)
    broken = (a_task(1), a_task(2, TaskState.FAILED, age_s=1, error="exit 1"))
    wait = step(wait, look(*broken), 101.0)
    assert texts(wait)["verify"] == "Detected task failure"
    assert texts(wait)["2/2"] == "exit 1"
    wait = step(wait, look(*RUNNING), 102.0)
    assert step(wait, look(*RUNNING), 106.9).outcome is None
    assert step(wait, look(*RUNNING), 107.0).outcome is Outcome.CONVERGED


def test_the_reason_a_task_waits_is_shown():
    why = "no suitable node (insufficient resources on 1 node)"
    waiting = a_task(2, TaskState.PENDING, node_id="", error=why)
    wait = step(Wait(), look(a_task(1), waiting), 0.0)
    assert texts(wait) == {
        "overall progress": "1 out of 2 tasks",
        "1/2": "running",
        "2/2": why,
    }
    assert [line.step for line in wait.lines] == [None, 9, None]


def test_tasks_on_dead_nodes_do_not_count():
    gone = a_task(2, node_id=NODE_B)
    assert step(Wait(), look(a_task(1), gone), 0.0).converged_at_s is None


def test_more_tasks_than_wanted_are_not_convergence():
    assert step(Wait(), look(*RUNNING, replicas=1), 0.0).converged_at_s is None


def test_no_replicas_converge():
    wait = step(Wait(), look(replicas=0), 0.0)
    assert step(wait, look(replicas=0), 5.0).outcome is Outcome.CONVERGED


def test_only_the_count_is_shown_for_many_tasks():
    tasks = [a_task(slot) for slot in range(1, BARS_MAX + 2)]
    few = step(Wait(), look(*tasks[:BARS_MAX], replicas=BARS_MAX), 0.0)
    many = step(Wait(), look(*tasks, replicas=BARS_MAX + 1), 0.0)
    assert len(few.lines) == BARS_MAX + 2
    assert [line.key for line in many.lines] == ["overall progress", "verify"]


@pytest.mark.parametrize("state", [UpdateState.PAUSED, UpdateState.ROLLBACK_PAUSED])
def test_a_pause_is_a_failure(state):
    wait = step(Wait(), look(*RUNNING, state=state, message="task x failed"), 0.0)
    assert wait.outcome is Outcome.FAILED
    assert wait.message.endswith("paused: task x failed")


def test_a_rollback_is_waited_for_and_then_a_failure():
    started = look(*RUNNING, state=UpdateState.ROLLBACK_STARTED, message="task x failed")
    wait = step(Wait(), started, 0.0)
    assert wait.outcome is None
    assert texts(wait)["rollback"] == "task x failed"
    assert texts(wait)["rolling back update"] == "2 out of 2 tasks"
    assert step(wait, started, 9.0).outcome is None
    done = look(*RUNNING, state=UpdateState.ROLLBACK_COMPLETED, message="rolled back")
    wait = step(wait, done, 1.0)
    wait = step(wait, done, 6.0)
    assert (wait.outcome, wait.rolled_back) == (Outcome.CONVERGED, True)
    assert wait.message == "task x failed"


def test_what_an_update_waits_for_is_shown():
    taken = "port 80/tcp is already in use by service db"
    message = f"task x failed; waiting: {taken}"
    wait = step(Wait(), look(state=UpdateState.ROLLBACK_STARTED, message=message), 0.0)
    assert wait.outcome is None
    assert (texts(wait)["rollback"], texts(wait)["waiting"]) == ("task x failed", taken)
    wait = step(wait, look(state=UpdateState.ROLLBACK_STARTED, message="task x failed"), 1.0)
    assert "waiting" not in texts(wait)


def test_convergence_waits_for_the_update_to_end():
    wait = step(Wait(), look(*RUNNING, state=UpdateState.UPDATING), 0.0)
    wait = step(wait, look(*RUNNING, state=UpdateState.UPDATING), 6.0)
    assert wait.outcome is None
    assert texts(wait)["verify"] == "Waiting for the cluster to end the update..."
    wait = step(wait, look(*RUNNING, state=UpdateState.COMPLETED), 6.5)
    assert wait.outcome is Outcome.CONVERGED


def test_tasks_that_complete_and_are_not_restarted_are_done():
    done = [a_task(slot, TaskState.COMPLETE) for slot in (1, 2)]
    once = RestartPolicy(condition=RestartCondition.ON_FAILURE)
    wait = step(Wait(), look(*done, restart=once), 0.0)
    assert step(wait, look(*done, restart=once), 5.0).outcome is Outcome.CONVERGED
    assert step(Wait(), look(*done), 0.0).converged_at_s is None


def test_tasks_that_fail_and_are_not_restarted_end_the_wait():
    never = RestartPolicy(condition=RestartCondition.NONE)
    failed = a_task(2, TaskState.FAILED, error="exit 7")
    wait = step(Wait(), look(a_task(1), failed, restart=never), 0.0)
    assert wait.outcome is Outcome.FAILED
    assert wait.message == f"task {failed.id} failed: exit 7"


def test_the_living_task_stands_for_its_slot():
    old = a_task(1, TaskState.FAILED, task_id="old", age_s=90, error="exit 1")
    newer = a_task(1, TaskState.FAILED, task_id="newer", age_s=50, error="exit 2")
    new = a_task(1, TaskState.STARTING, task_id="new", age_s=10)
    assert tasks_by_slot([old, new, newer], LIVE)[1].id == "new"
    assert tasks_by_slot([old, newer], LIVE)[1].id == "newer"
    stopped = a_task(1, TaskState.SHUTDOWN, task_id="stopped", desired=TaskState.SHUTDOWN)
    assert tasks_by_slot([stopped], LIVE) == {}
    leaving = a_task(1, task_id="leaving", desired=TaskState.SHUTDOWN)
    assert tasks_by_slot([leaving, new], LIVE)[1].id == "new"


def test_a_service_without_a_number_of_replicas():
    service = a_service(spec=a_spec(mode=GlobalMode()))
    first = a_task(0, task_id="first", node_id=NODE_A)
    failed = a_task(
        0, TaskState.FAILED, task_id="failed", node_id=NODE_B, desired=TaskState.SHUTDOWN, age_s=60
    )
    again = a_task(0, TaskState.STARTING, task_id="again", node_id=NODE_B)
    wait = step(Wait(), Look(service, (first, failed, again), BOTH), 0.0)
    assert wait.converged_at_s is None
    assert wait.lines[0].text == "1 out of 2 tasks"
    given_up = Look(service, (first, failed), BOTH)  # that node is drained, say
    assert step(wait, given_up, 3.0).converged_at_s == 3.0


def test_a_global_service_without_a_node_converges_after_a_while():
    seen = Look(
        a_service(spec=a_spec(mode=GlobalMode(), update=UpdateConfig(monitor_ns=0))), (), BOTH
    )
    wait = step(Wait(), seen, 0.0)
    assert step(wait, seen, 4.0).outcome is None
    assert step(wait, seen, 6.0).outcome is Outcome.CONVERGED


TASKS = st.builds(
    a_task,
    st.integers(1, 3),
    st.sampled_from(TaskState),
    node_id=st.sampled_from(["", NODE_A, NODE_B]),
    desired=st.sampled_from([TaskState.RUNNING, TaskState.SHUTDOWN, TaskState.REMOVE]),
)


@given(st.lists(TASKS, max_size=6), st.integers(0, 3), st.sampled_from([None, *UpdateState]))
def test_laws_of_the_wait(tasks, replicas, state):
    seen = look(*tasks, replicas=replicas, state=state)
    first = step(Wait(), seen, 0.0)
    assert step(Wait(), look(*reversed(tasks), replicas=replicas, state=state), 0.0).outcome is (
        first.outcome
    )
    running = sum(
        task.status.state is TaskState.RUNNING and task.desired_state <= TaskState.RUNNING
        for task in tasks
    )
    if step(first, seen, 100.0).outcome is Outcome.CONVERGED:
        assert running >= replicas


def test_plain_lines_are_printed_once_each():
    stream = io.StringIO()
    with PlainDisplay(stream) as display:
        display.show([Line("a", "1"), Line("b", "x")])
        display.show([Line("a", "2"), Line("b", "x")])
        display.show([Line("a", "2")])
    assert stream.getvalue() == "a: 1\nb: x\na: 2\n"


def test_bars():
    assert bar_line(Line("1/3", "new", 1)) == f"1/3: new       [{'====>':<50}]"
    assert bar_line(Line("1/3", "running", 9)) == f"1/3: running   [{'=' * 50}]"
    assert bar_line(Line("verify", "done")) == "verify: done"


def test_bars_are_drawn_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with make_display(quiet=False, stream=stream) as display:
        display.show([Line("1/1", "running", 9)])
    assert "1/1: running" in stream.getvalue()


def test_quiet_shows_nothing():
    stream = io.StringIO()
    with make_display(quiet=True, stream=stream) as display:
        display.show([Line("a", "1")])
    assert stream.getvalue() == ""
