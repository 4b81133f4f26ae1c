"""How a one-off task ended, and which of its lines were printed already. Pure.

The lines come over a stream that follows the log and never ends. When the task has ended they are
read once more, from shortly before the last one; `Printed` passes what is new.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from shoal.clock import NS_PER_S
from shoal.docker.words import spell
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Task
from swarmctl.exits import NOT_RUN
from swarmctl.types import LogLine

OVERLAP_NS = NS_PER_S
PLAIN_EXIT = "task: non-zero exit"
"""Begins the error of a task whose program ended with a code of its own: the code says it all."""


class Ending(msgspec.Struct, frozen=True):
    """The code to exit with; `message`: what is to be said besides."""

    code: int
    message: str = ""


def ending_of(tasks: Sequence[Task]) -> Ending | None:
    """How the work ended; None while it may still be done. `tasks`: of a job that restarts none."""
    if any(task.status.state is TaskState.COMPLETE for task in tasks):
        return Ending(0)
    if not tasks or any(is_wanted(task) and not is_terminal(task) for task in tasks):
        return None
    newest = max(tasks, key=lambda task: (task.meta.created_at_ns, task.id))
    if is_wanted(newest):
        return None  # it has ended, and the managers are about to say whether that was all
    container = newest.status.container
    reason = newest.status.error or newest.status.message or "its node is lost"
    message = f"task {newest.id} {spell(newest.status.state)}: {reason}"
    if newest.status.state is TaskState.FAILED and container is not None and container.exit_code:
        told = newest.status.error.startswith(PLAIN_EXIT)
        return Ending(container.exit_code, "" if told else message)
    return Ending(NOT_RUN, message)


def obstacle_of(tasks: Iterable[Task]) -> str:
    """What keeps the task from being run, "" when nothing does."""
    waiting = [task for task in tasks if task.status.state < TaskState.RUNNING]
    return next((task.status.error for task in waiting if task.status.error), "")


class Printed:
    """The newest line printed of each stream, and how many there were at that very time."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, bool], tuple[int, int]] = {}

    @property
    def since_ns(self) -> int:
        """From when on there may be lines that were not printed; 0: from the beginning."""
        newest_ns = max((at_ns for at_ns, _ in self._last.values()), default=0)
        return max(0, newest_ns - OVERLAP_NS)

    def add(self, line: LogLine) -> None:
        """A line was printed."""
        key = (line.task_id, line.is_stderr)
        at_ns, count = self._last.get(key, (0, 0))
        self._last[key] = (line.timestamp_ns, count + 1 if at_ns == line.timestamp_ns else 1)

    def missing(self, lines: Iterable[LogLine]) -> Iterable[LogLine]:
        """Those that were not printed, of lines read again in order."""
        seen = dict(self._last)
        for line in lines:
            key = (line.task_id, line.is_stderr)
            at_ns, count = seen.get(key, (0, 0))
            if line.timestamp_ns > at_ns:
                yield line
            elif line.timestamp_ns == at_ns:
                if count == 0:
                    yield line
                else:
                    seen[key] = (at_ns, count - 1)
