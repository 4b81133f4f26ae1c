"""service run: one task, attached: its lines are printed, its exit code is passed on.

The service is a job of one task that is tried once. It is removed when the task has ended, when the
command is interrupted, and when it was killed some time after the end of the task.
"""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

import click

from shoal.clock import SystemClock
from shoal.errors import NotFound, SwarmError
from shoal.ids import new_id
from shoal.model.enums import RestartCondition
from shoal.model.objects import Service
from shoal.model.specs import ContainerSpec, ServiceSpec, TaskSpec
from swarmctl import output
from swarmctl.commands.service_flags import create_flags
from swarmctl.commands.service_write import PASS_ARGUMENTS, flags_of, with_auth
from swarmctl.edit.service import edit_service
from swarmctl.exits import CommandFailed
from swarmctl.oneoff import Ending, Printed, ending_of, obstacle_of
from swarmctl.options import FunctionT
from swarmctl.session import Session
from swarmctl.types import Filters, LogBatch, LogLine, LogQuery

if TYPE_CHECKING:
    from swarmctl.client import Client

POLL_PERIOD_S = 0.2
LAST_LINES_S = 10.0
SILENCE_MAX_S = 60.0
"""So long the cluster may have no leader while the task runs."""
TTL_NS = 3_600_000_000_000
"""A service whose command was killed is kept for an hour after its end."""

_WITHOUT = ("mode", "replicas", "max_concurrent", "replicas_max_per_node")
_WITHOUT_PREFIXES = ("update_", "rollback_", "restart_")


def _run_flags(function: FunctionT) -> FunctionT:
    """The flags of `service create` that mean something for a single task."""
    function = create_flags(function)
    options: list[click.Parameter] = getattr(function, "__click_params__", [])
    options[:] = [
        option
        for option in options
        if option.name not in _WITHOUT and not str(option.name).startswith(_WITHOUT_PREFIXES)
    ]
    return function


@click.command("run", context_settings=PASS_ARGUMENTS)
@click.argument("image")
@click.argument("arguments", nargs=-1, metavar="[COMMAND] [ARG...]", type=click.UNPROCESSED)
@_run_flags
@click.option("-d", "--detach", is_flag=True, help="Print the service's id and leave it alone")
@click.pass_obj
def run_service(
    session: Session,
    /,
    image: str,
    arguments: tuple[str, ...],
    *,
    detach: bool,
    **values: Any,
) -> None:
    """Run one task to its end: print its output, exit with its code.

    The task runs where the cluster has room, once; the service is removed afterwards, also by
    Ctrl-C. With --detach it is left alone, and removed --ttl-after-finish (1h) after its end.
    """
    flags = with_auth(flags_of(values) | {"image": image}, image)
    if arguments:
        flags["args"] = arguments
    flags.setdefault("name", f"run-{new_id()[:8]}")
    flags.setdefault("ttl_after_finish", TTL_NS)
    flags |= {"mode": "replicated-job", "restart_condition": RestartCondition.NONE}
    spec = edit_service(ServiceSpec(task=TaskSpec(runtime=ContainerSpec())), flags)

    async def work(client: Client) -> Ending:
        written = await client.create_service(spec)
        output.warn(written.warnings)
        if detach:
            click.echo(written.service.id)
            return Ending(0)
        try:
            return await _attended(client, written.service)
        finally:
            await _remove(client, written.service)

    ending = session.run(work)
    if ending.message:
        raise CommandFailed(ending.message, ending.code)
    raise click.exceptions.Exit(ending.code)


async def _attended(client: Client, service: Service) -> Ending:
    """Print the task's lines until it has ended."""
    printed = Printed()
    following = asyncio.create_task(_follow(client, service, printed), name="service-run-logs")
    try:
        ending = await _until_ended(client, service)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    try:
        async with asyncio.timeout(LAST_LINES_S):
            await _print_rest(client, service, printed)
    except TimeoutError:
        click.echo("Warning: the last lines of the task did not come in time", err=True)
    return ending


async def _until_ended(client: Client, service: Service) -> Ending:
    """Ask until it is known how the task ended. That the managers change does not end the wait."""
    clock = SystemClock()
    said, answered_at_s = "", clock.monotonic_s()
    while True:
        try:
            tasks = await client.tasks(Filters(services=(service.id,)))
        except SwarmError as error:
            if not error.retryable or clock.monotonic_s() - answered_at_s > SILENCE_MAX_S:
                raise
            await asyncio.sleep(POLL_PERIOD_S)
            continue
        answered_at_s = clock.monotonic_s()
        ending = ending_of(tasks)
        if ending is not None:
            return ending
        if not tasks:
            await client.service(service.id)  # NotFound: somebody has removed it
        obstacle = obstacle_of(tasks)
        if obstacle and obstacle != said:
            click.echo(f"waiting: {obstacle}", err=True)
            said = obstacle
        await asyncio.sleep(POLL_PERIOD_S)


async def _follow(client: Client, service: Service, printed: Printed) -> None:
    """Print lines as they come. What a broken stream leaves out is printed at the end."""
    query = LogQuery(services=(service.id,), tasks=(), follow=True, tail=None, since_ns=0)
    try:
        async for batch in client.log_batches(query):
            for line in batch.lines:
                _write(line)
                printed.add(line)
            _flush()
    except SwarmError:
        return


async def _print_rest(client: Client, service: Service, printed: Printed) -> None:
    query = LogQuery(
        services=(service.id,), tasks=(), follow=False, tail=None, since_ns=printed.since_ns
    )
    lines: list[LogLine] = []
    try:
        async for batch in client.log_batches(query):
            lines += batch.lines
            _warn(batch)
    except SwarmError as error:
        click.echo(f"Warning: incomplete log stream: {error.message}", err=True)
    for line in printed.missing(lines):
        _write(line)
    _flush()


def _warn(batch: LogBatch) -> None:
    if batch.incomplete:
        click.echo(f"Warning: incomplete log stream: {batch.incomplete}", err=True)


def _write(line: LogLine) -> None:
    stream = sys.stderr if line.is_stderr else sys.stdout
    stream.buffer.write(line.data)


def _flush() -> None:
    sys.stdout.buffer.flush()
    sys.stderr.buffer.flush()


async def _remove(client: Client, service: Service) -> None:
    try:
        await client.remove_service(service.id)
    except NotFound:
        return
    except SwarmError as error:
        name = service.spec.annotations.name
        click.echo(f"Warning: service {name} was not removed: {error.message}", err=True)
