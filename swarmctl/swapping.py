"""The wait for other contents of secrets and configs to be in place below running tasks."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from shoal.clock import SystemClock
from shoal.errors import SwarmError
from shoal.model.defaults import is_wanted
from shoal.model.enums import TaskState
from shoal.model.objects import Service, Task
from shoal.model.specs import ContainerSpec
from swarmctl.exits import CommandFailed
from swarmctl.types import Filters

if TYPE_CHECKING:
    from swarmctl.client import Client

POLL_PERIOD_S = 0.2
WAIT_MAX_S = 60.0
"""A task is told within a second; a node that is away that long is not waited for."""


def is_live(service: Service) -> bool:
    """Whether contents are swapped below the service's running tasks."""
    container = service.spec.task.runtime
    return isinstance(container, ContainerSpec) and container.file_rotation is not None


async def wait_swapped(client: Client, service_id: str, file_id: str) -> None:
    """Return when all running tasks have a content. Raises CommandFailed where one cannot."""
    clock = SystemClock()
    end_s = clock.monotonic_s() + WAIT_MAX_S
    while True:
        try:
            tasks = await client.tasks(Filters(services=(service_id,)))
        except SwarmError as error:
            if not error.retryable or clock.monotonic_s() > end_s:
                raise
        else:
            left = [task for task in tasks if _runs(task) and file_id not in task.status.file_ids]
            if not left:
                return
            failed = next((task for task in left if task.status.error), None)
            if failed is not None or clock.monotonic_s() > end_s:
                why = left[0].status.error if failed is None else failed.status.error
                raise CommandFailed(
                    f"{len(left)} tasks have the content from before, as {(failed or left[0]).id}:"
                    f" {why or f'nothing was heard of it for {WAIT_MAX_S:g} s'}"
                )
        await asyncio.sleep(POLL_PERIOD_S)


def _runs(task: Task) -> bool:
    return is_wanted(task) and task.status.state is TaskState.RUNNING
