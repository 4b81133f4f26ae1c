"""How a one-off task ended, and which lines are still to be printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.model.enums import TaskState
from shoal.model.types import ContainerStatus
from swarmctl.commands.service_run import run_service
from swarmctl.exits import NOT_RUN
from swarmctl.oneoff import Ending, Printed, ending_of, obstacle_of
from swarmctl.types import LogLine
from tests.unit.swarmctl.rows import a_task

COMPLETE, FAILED, SHUTDOWN = TaskState.COMPLETE, TaskState.FAILED, TaskState.SHUTDOWN


def _ended(state, *, desired=SHUTDOWN, exit_code=0, error=""):
    task = a_task(0, state, task_id="t", desired=desired, error=error)
    container = ContainerStatus(exit_code=exit_code) if exit_code else None
    return task.replaced(status=task.status.replaced(container=container))


@pytest.mark.parametrize(
    ("tasks", "ending"),
    [
        ([], None),
        ([_ended(TaskState.RUNNING, desired=COMPLETE)], None),
        ([_ended(COMPLETE, desired=COMPLETE)], Ending(0)),
        ([_ended(FAILED, desired=COMPLETE, exit_code=3)], None),
        ([_ended(FAILED, exit_code=3, error="task: non-zero exit (3)")], Ending(3)),
        ([_ended(FAILED, exit_code=127, error="x")], Ending(127, "task t failed: x")),
        ([_ended(FAILED, error="no such file")], Ending(NOT_RUN, "task t failed: no such file")),
        ([_ended(TaskState.REJECTED, error="x")], Ending(NOT_RUN, "task t rejected: x")),
        ([_ended(SHUTDOWN, error="x")], Ending(NOT_RUN, "task t shutdown: x")),
    ],
)  # fmt: skip
def test_endings(tasks, ending):
    assert ending_of(tasks) == ending


def test_a_task_that_was_moved_before_it_started_is_no_end():
    moved = _ended(SHUTDOWN)
    again = a_task(0, TaskState.PENDING, task_id="u", desired=COMPLETE, error="no suitable node")
    assert ending_of([moved, again]) is None
    assert obstacle_of([moved, again]) == "no suitable node"
    assert obstacle_of([moved]) == ""


def test_what_means_nothing_for_one_task_is_not_offered():
    names = {parameter.name for parameter in run_service.params}
    assert {"env_add", "constraint_add", "network_add", "ttl_after_finish", "detach"} <= names
    kinds = ("update_", "rollback_", "restart_", "replicas", "max_concurrent", "mode")
    assert not [name for name in names if name.startswith(kinds)]


def _line(at_ns, is_stderr, text):
    return LogLine(
        service_id="s", node_id="n", task_id="t", timestamp_ns=at_ns, is_stderr=is_stderr,
        data=text.encode(),
    )  # fmt: skip


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.integers(0, 30)
)  # fmt: skip
def test_every_line_is_printed_once(steps, count):
    """Whatever part of the log came over the stream, the rest follows."""
    at_ns, log = 10_000_000_000, []
    for number, (step, is_stderr) in enumerate(steps):
        at_ns += step * 400_000_000
        log.append(_line(at_ns, is_stderr, str(number)))
    printed = Printed()
    for line in log[:count]:
        printed.add(line)
    again = [line for line in log if line.timestamp_ns >= printed.since_ns]
    assert [*log[:count], *printed.missing(again)] == log
