"""What a task's next step is: the agent's part of the ladder, as pure functions.

ACCEPTED and READY are passed only when the manager wants more; the steps in between proceed by
themselves. A wish to stop overrides everything until the task has ended.
"""

from __future__ import annotations

from enum import Enum, auto

from shoal.model.enums import PortProtocol, PublishMode, TaskState
from shoal.model.objects import Task
from shoal.model.types import PortConfig
from worker.runtime.api import ContainerStatus

_RANK = {"created": 0, "running": 1, "exited": 2}


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
    if observed in {TaskState.ACCEPTED, TaskState.READY} and desired <= observed:
        return Step.IDLE
    if observed < TaskState.READY:
        return Step.PREPARE
    return Step.WATCH if observed is TaskState.RUNNING else Step.START


def failure_state(observed: TaskState) -> TaskState:
    """REJECTED before the container was started, FAILED after."""
    return TaskState.REJECTED if observed < TaskState.STARTING else TaskState.FAILED


def exit_state(exit_code: int) -> TaskState:
    """What a container that ended by itself makes of its task."""
    return TaskState.COMPLETE if exit_code == 0 else TaskState.FAILED


def is_newer(status: ContainerStatus, known: ContainerStatus | None) -> bool:
    """Whether `status` is later than `known`: answers and events come over different sockets.

    A container is made, runs and ends once; another attempt of the task is made later.
    """
    if known is None:
        return True
    return (status.created_at_ns, _RANK[status.state]) >= (
        known.created_at_ns,
        _RANK[known.state],
    )


def listened_ports(task: Task) -> frozenset[tuple[str, int]]:
    """The (protocol, port) pairs on which the task's program is to take traffic: all published."""
    ports = () if task.endpoint is None else task.endpoint.ports
    return frozenset(
        (port.protocol.name.lower(), port.target_port)
        for port in ports
        if port.protocol in {PortProtocol.TCP, PortProtocol.UDP}
    )


def host_ports(task: Task) -> tuple[PortConfig, ...]:
    """The ports that the task's own node publishes for it alone (mode=host)."""
    ports = () if task.endpoint is None else task.endpoint.ports
    return tuple(
        port for port in ports if port.publish_mode is PublishMode.HOST and port.published_port
    )
