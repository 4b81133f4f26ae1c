"""What a task's next step is: the agent's part of the ladder, as a pure function.

ACCEPTED and READY are passed only when the manager wants more; the steps in between proceed by
themselves. A wish to stop overrides everything until the task has ended.
"""

from __future__ import annotations

from enum import Enum, auto

from shoal.model.enums import TaskState


class Step(Enum):
    """What the runner of a task does next."""

    ACCEPT = auto()
    PREPARE = auto()
    START = auto()
    WATCH = auto()
    STOP = auto()
    IDLE = auto()
    """Wait until the manager wants something else."""
    DONE = auto()


def next_step(observed: TaskState, desired: TaskState) -> Step:
    """The step for a task seen in state `observed` that the manager wants in `desired`."""
    if observed > TaskState.RUNNING:
        return Step.DONE
    if desired > TaskState.COMPLETE:
        return Step.STOP
    if observed < TaskState.ACCEPTED:
        return Step.ACCEPT
    if observed < TaskState.READY:
        return Step.PREPARE
    if observed is TaskState.READY:
        return Step.START if desired >= TaskState.RUNNING else Step.IDLE
    return Step.WATCH if observed is TaskState.RUNNING else Step.START


def failure_state(observed: TaskState) -> TaskState:
    """REJECTED before the container was started, FAILED after."""
    return TaskState.REJECTED if observed < TaskState.STARTING else TaskState.FAILED


def exit_state(exit_code: int) -> TaskState:
    """What a container that ended by itself makes of its task."""
    return TaskState.COMPLETE if exit_code == 0 else TaskState.FAILED
