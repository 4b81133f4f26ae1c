"""task ls, inspect, logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from shoal.clock import SystemClock
from shoal.docker.objects import task_json
from swarmctl import output
from swarmctl.commands.service_logs import task_logs
from swarmctl.each import each, exit_with
from swarmctl.filters import TASK_RULES, parse_filters
from swarmctl.options import (
    filter_option,
    format_option,
    inspect_format_option,
    no_resolve_option,
    no_trunc_option,
    quiet_option,
)
from swarmctl.render.rows import TASK_COLUMNS
from swarmctl.session import Session
from swarmctl.tasks import resolve_nodes, task_rows

if TYPE_CHECKING:
    from swarmctl.client import Client


@click.group()
def task() -> None:
    """Tasks of the cluster."""


task.add_command(task_logs)


@task.command("ls")
@filter_option
@format_option
@quiet_option
@no_resolve_option
@no_trunc_option
@click.pass_obj
def list_tasks(
    session: Session,
    filters: tuple[str, ...],
    template: str,
    *,
    quiet: bool,
    no_resolve: bool,
    no_trunc: bool,
) -> None:
    """List the tasks of all services.

    Filters: id, name, label, node, service, desired-state.
    """
    wanted = parse_filters(filters, TASK_RULES)

    async def work(client: Client) -> None:
        services = [(await client.service(name)).service.id for name in wanted.services]
        limited = await resolve_nodes(client, wanted)
        limited = msgspec.structs.replace(limited, services=tuple(services))
        rows = await task_rows(
            client,
            await client.tasks(limited),
            now_ns=SystemClock().now_ns(),
            trunc=not (no_trunc or quiet),
            resolve=not no_resolve,
        )
        output.write(output.rows_text(rows, columns=TASK_COLUMNS, template=template, quiet=quiet))

    session.run(work)


@task.command("inspect")
@click.argument("names", nargs=-1, required=True, metavar="TASK...")
@inspect_format_option
@click.pass_obj
def inspect_tasks(session: Session, names: tuple[str, ...], template: str) -> None:
    """Show everything about tasks."""

    async def work(client: Client) -> None:
        tasks, errors = await each(names, client.task)
        output.write(output.objects_text([task_json(item) for item in tasks], template))
        exit_with(errors)

    session.run(work)
