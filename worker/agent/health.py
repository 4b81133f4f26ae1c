"""Checks the health of tasks' containers (`worker.health`), over restarts of the worker.

What the checks have said is kept beside the container: a worker that takes a container over goes on
where the last one was, and ends the check that one may have left behind. A file that cannot be
written costs only that. A container's label says how it is checked, whatever its image's name
stands for later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

import msgspec
import structlog

from shoal.aio.threads import in_thread
from shoal.clock import Clock
from worker.health import files
from worker.health.core import HEALTHY, STARTING, Check, Health
from worker.health.files import KeptHealth
from worker.health.probing import Probing
from worker.runtime.api import ContainerStatus
from worker.runtime.interactive import InteractiveRuntime

HEALTH_LABEL = "dev.shoal.health-check"
"""How a task's container is checked, as JSON; "" or missing: it is not."""
_OUTPUT_LENGTH_MAX = 300
TellOfChecks = Callable[[str, str, Mapping[str, str]], None]
"""Told of a container: its id, what happened (`health_status: healthy`, `exec_create: …`), and
what there is to it."""

_log = structlog.get_logger()


def label_of(check: Check | None) -> str:
    """The check as its container's label says it."""
    return "" if check is None else msgspec.json.encode(check).decode()


def check_in(labels: Mapping[str, str]) -> Check | None:
    """How a container with these labels is checked; None: it is not."""
    text = labels.get(HEALTH_LABEL, "")
    return msgspec.json.decode(text, type=Check) if text else None


def spelled(health: Health) -> str:
    """What the last check said, in a line; "" before the first."""
    if not health.log:
        return ""
    probe = health.log[-1]
    output = " ".join(probe.output.split())[:_OUTPUT_LENGTH_MAX]
    return f"exit {probe.exit_code}: {output}" if output else f"exit {probe.exit_code}"


class Checks(Protocol):
    """What checks containers."""

    async def follow(
        self,
        seen: Callable[[], ContainerStatus],
        *,
        was_healthy: bool,
        changed: Callable[[Health], None],
    ) -> None:
        """Check a running container until cancelled.

        seen: its newest status. was_healthy: a check has succeeded, if nothing says more. changed:
        gets its health at once and after every check.
        """
        ...


class TaskHealth:
    """The health of one task's container, from `begin` to `end`."""

    def __init__(
        self, checks: Checks, changed: Callable[[Health], None], broken: Callable[[str], None]
    ) -> None:
        """changed: told after each check. broken: told why there are no more checks."""
        self._checks = checks
        self._changed = changed
        self._broken = broken
        self._settled = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    def begin(self, seen: Callable[[], ContainerStatus], *, was_healthy: bool) -> bool:
        """Have a running container checked, once; False when it has no check."""
        if check_in(seen().labels) is None:
            return False
        if self._work is None:
            work = self._checks.follow(seen, was_healthy=was_healthy, changed=self._take)
            self._work = asyncio.create_task(work, name=f"health {seen().id}")
            self._work.add_done_callback(self._ended)
        return True

    async def settled(self) -> None:
        """Wait until the container is healthy or unhealthy."""
        await self._settled.wait()

    async def end(self) -> None:
        """Check it no more. Idempotent."""
        work, self._work = self._work, None
        if work is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def _take(self, health: Health) -> None:
        if health.status != STARTING:
            self._settled.set()
        self._changed(health)

    def _ended(self, work: asyncio.Task[None]) -> None:
        error = None if work.cancelled() else work.exception()
        if error is not None:
            _log.error("task.checks_broken", work=work.get_name(), exc_info=error)
            self._broken(f"internal error in a health check: {type(error).__name__}: {error}")


def tell_nobody(container: str, action: str, attributes: Mapping[str, str]) -> None:
    """Where nobody reads events."""
    del container, action, attributes


class HealthChecks:
    """Runs the checks of this node's tasks."""

    def __init__(
        self,
        runtime: InteractiveRuntime,
        clock: Clock,
        container_dir: Callable[[str], str],
        tell: TellOfChecks = tell_nobody,
    ) -> None:
        self._tell = tell
        self._probing = Probing(runtime, clock)
        self._container_dir = container_dir

    async def follow(
        self,
        seen: Callable[[], ContainerStatus],
        *,
        was_healthy: bool,
        changed: Callable[[Health], None],
    ) -> None:
        """As `Checks.follow`."""
        status = seen()
        check = check_in(status.labels)
        if check is None:
            return
        directory = self._container_dir(status.id)
        kept = await asyncio.to_thread(files.load, directory)
        if kept is not None and kept.exec_id:
            await self._probing.end(kept.exec_id)
        health = kept.health if kept is not None else Health(HEALTHY) if was_healthy else Health()
        container = _Checked(seen, directory, health, changed, self._tell)
        await container.judged(health)
        await self._probing.follow(container, check, status.started_at_ns)


class _Checked:
    """A task's container. Implements `worker.health.probing.Checked`."""

    def __init__(
        self,
        seen: Callable[[], ContainerStatus],
        directory: str,
        health: Health,
        changed: Callable[[Health], None],
        tell: TellOfChecks,
    ) -> None:
        self._tell = tell
        self._seen = seen
        self._directory = directory
        self._changed = changed
        self._is_kept = True
        self.health = health

    @property
    def id(self) -> str:
        return self._seen().id

    @property
    def lives(self) -> bool:
        return self._seen().state == "running"

    @property
    def answers(self) -> bool:
        return self.lives and not self._seen().paused

    async def begins(self, exec_id: str) -> None:
        await self._keep(KeptHealth(self.health, exec_id))

    async def judged(self, health: Health) -> None:
        is_other = health.status != self.health.status
        self.health = health
        await self._keep(KeptHealth(health))
        self._changed(health)
        if is_other:
            self.told(f"health_status: {health.status}", {})

    def told(self, action: str, attributes: Mapping[str, str]) -> None:
        self._tell(self.id, action, attributes)

    async def _keep(self, kept: KeptHealth) -> None:
        try:
            await in_thread(partial(files.save, self._directory, kept))
        except OSError as error:
            if self._is_kept:
                _log.warning("task.health_not_kept", task_id=self.id, reason=str(error))
            self._is_kept = False
        else:
            self._is_kept = True
