"""The loop around `core`: looks at the service until it has converged or cannot.

It looks when the Watch says that something changed and once a second besides; where the daemon
offers no Watch, every 200 ms. Holds no decisions.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from shoal.clock import SystemClock
from shoal.errors import SwarmError
from shoal.model.enums import NodeState
from swarmctl.exits import CommandFailed
from swarmctl.progress.core import Look, Outcome, Wait, step
from swarmctl.progress.display import Display
from swarmctl.types import Filters

if TYPE_CHECKING:
    from swarmctl.client import Client

POLL_PERIOD_S = 0.2
WATCHED_PERIOD_S = 1.0
LOOK_PERIOD_MIN_S = 0.1


async def wait_converged(
    client: Client, service_id: str, display: Display, *, rollback: bool = False
) -> None:
    """Return when the service has converged; CommandFailed when it cannot.

    rollback: the user asked for one; otherwise a service that was rolled back is a failure.
    """
    changed = asyncio.Event()
    watching = asyncio.Event()
    watcher = asyncio.create_task(
        _watch(client, service_id, changed, watching), name="service-watch"
    )
    try:
        wait = await _until_outcome(client, service_id, display, changed, watching)
    finally:
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
    if wait.outcome is Outcome.FAILED:
        raise CommandFailed(wait.message)
    if wait.rolled_back and not rollback:
        raise CommandFailed(f"service rolled back: {wait.message}")


async def _until_outcome(
    client: Client,
    service_id: str,
    display: Display,
    changed: asyncio.Event,
    watching: asyncio.Event,
) -> Wait:
    clock, wait = SystemClock(), Wait()
    while True:
        changed.clear()
        wait = step(wait, await _look(client, service_id), clock.monotonic_s())
        display.show(wait.lines)
        if wait.outcome is not None:
            return wait
        await asyncio.sleep(LOOK_PERIOD_MIN_S)
        period_s = WATCHED_PERIOD_S if watching.is_set() else POLL_PERIOD_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(period_s - LOOK_PERIOD_MIN_S):
                await changed.wait()


async def _look(client: Client, service_id: str) -> Look:
    filters = Filters(services=(service_id,), up_to_date=True)
    entry, tasks, nodes = await asyncio.gather(
        client.service(service_id), client.tasks(filters), client.nodes()
    )
    live = frozenset(node.id for node in nodes if node.status.state is not NodeState.DOWN)
    return Look(entry.service, tuple(tasks), live)


async def _watch(
    client: Client, service_id: str, changed: asyncio.Event, watching: asyncio.Event
) -> None:
    """Set `changed` at every change. Any failure just leaves the loop to its polling."""
    try:
        async for _ in client.changes(service_id):
            watching.set()
            changed.set()
    except SwarmError:
        pass
    finally:
        watching.clear()
