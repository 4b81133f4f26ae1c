"""The whole table of next steps, and what is later than what."""

from __future__ import annotations

import itertools

import pytest

from shoal.model.enums import TaskState as S
from tests.unit.worker.agent.support import a_task
from worker.agent.core import Step, exit_state, failure_state, host_ports, is_newer, next_step
from worker.runtime.api import ContainerStatus

DESIRED = (S.READY, S.RUNNING, S.COMPLETE, S.SHUTDOWN, S.REMOVE)
WANTED, STOPPED = DESIRED[:3], DESIRED[3:]


def expected(observed: S, desired: S) -> Step:
    if observed in {S.COMPLETE, S.SHUTDOWN, S.FAILED, S.REJECTED, S.REMOVE, S.ORPHANED}:
        return Step.DONE
    if desired in STOPPED:
        return Step.STOP
    if observed is S.READY:
        return Step.IDLE if desired is S.READY else Step.START
    return {
        S.NEW: Step.ACCEPT,
        S.PENDING: Step.ACCEPT,
        S.ASSIGNED: Step.ACCEPT,
        S.ACCEPTED: Step.PREPARE,
        S.PREPARING: Step.PREPARE,
        S.STARTING: Step.START,
        S.RUNNING: Step.WATCH,
    }[observed]


@pytest.mark.parametrize(("observed", "desired"), list(itertools.product(S, DESIRED)))
def test_next_step(observed, desired):
    assert next_step(observed, desired) is expected(observed, desired)


@pytest.mark.parametrize("desired", [S.ASSIGNED, S.ACCEPTED])
def test_accepted_is_a_pause_point(desired):
    assert next_step(S.ACCEPTED, desired) is Step.IDLE
    assert next_step(S.ACCEPTED, S.PREPARING) is Step.PREPARE


def test_every_state_below_the_end_gets_there_when_it_is_not_wanted():
    for observed in S:
        assert next_step(observed, S.REMOVE) in {Step.STOP, Step.DONE}


def test_failures_and_exits():
    assert {s: failure_state(s) for s in S if s < S.STARTING} == dict.fromkeys(
        (s for s in S if s < S.STARTING), S.REJECTED
    )
    assert failure_state(S.STARTING) is failure_state(S.RUNNING) is S.FAILED
    assert exit_state(0) is S.COMPLETE
    assert exit_state(1) is S.FAILED


def test_later_means_a_later_container_or_a_later_state_of_it():
    def status(made, state):
        return ContainerStatus(id="c", state=state, created_at_ns=made)

    order = [status(1, "created"), status(1, "running"), status(1, "exited"), status(2, "created")]
    for earlier, later in itertools.combinations(order, 2):
        assert is_newer(later, earlier)
        assert not is_newer(earlier, later)
    assert is_newer(order[0], None)


def test_host_ports_are_those_of_mode_host():
    assert host_ports(a_task()) == ()
    assert [port.published_port for port in host_ports(a_task(host_port=8080))] == [8080]
