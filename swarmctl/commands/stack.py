"""The stack group: what is there; changes are in `stack_write`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from shoal.clock import SystemClock
from shoal.errors import InvalidArgument, NotFound
from shoal.model.stacks import NAMESPACE_LABEL
from swarmctl import output
from swarmctl.commands.stack_write import compose_option, deploy, remove, rollback
from swarmctl.complete import complete_stacks
from swarmctl.filters import SERVICE_RULES, TASK_RULES, parse_filters
from swarmctl.options import (
    filter_option,
    format_option,
    no_resolve_option,
    no_trunc_option,
    quiet_option,
)
from swarmctl.render.rows import SERVICE_COLUMNS, TASK_COLUMNS, service_row
from swarmctl.session import Session
from swarmctl.tasks import resolve_nodes, task_rows
from swarmctl.types import Filters, ServiceEntry

if TYPE_CHECKING:
    from swarmctl.client import Client


@click.group()
def stack() -> None:
    """Services that belong together, from Compose files."""


stack.add_command(deploy)
stack.add_command(rollback)
stack.add_command(remove)


@stack.command("ls")
@format_option
@click.pass_obj
def list_all(session: Session, template: str) -> None:
    """List stacks, also those that docker has deployed."""

    async def work(client: Client) -> None:
        from swarmctl.render.stacks import STACK_COLUMNS, stack_row
        from swarmctl.stacks import list_stacks

        rows = [stack_row(one) for one in await list_stacks(client)]
        output.write(output.rows_text(rows, columns=STACK_COLUMNS, template=template))

    session.run(work)


@stack.command("services")
@click.argument("name", metavar="STACK", shell_complete=complete_stacks)
@filter_option
@format_option
@quiet_option
@click.pass_obj
def list_services(
    session: Session, name: str, filters: tuple[str, ...], template: str, *, quiet: bool
) -> None:
    """List the services of a stack.

    Filters: id, name, label, mode.
    """
    wanted = parse_filters(filters, SERVICE_RULES)

    async def work(client: Client) -> None:
        entries = await _members(client, name, wanted)
        if not entries:
            click.echo(f"Nothing found in stack: {name}", err=True)
            return
        rows = [service_row(entry) for entry in entries]
        output.write(
            output.rows_text(rows, columns=SERVICE_COLUMNS, template=template, quiet=quiet)
        )

    session.run(work)


@stack.command("ps")
@click.argument("name", metavar="STACK", shell_complete=complete_stacks)
@filter_option
@format_option
@quiet_option
@no_resolve_option
@no_trunc_option
@click.pass_obj
def list_tasks(
    session: Session,
    name: str,
    filters: tuple[str, ...],
    template: str,
    *,
    quiet: bool,
    no_resolve: bool,
    no_trunc: bool,
) -> None:
    """List the tasks of a stack.

    Filters: id, name, node, desired-state (running, shutdown, accepted).
    """
    wanted = parse_filters(filters, TASK_RULES)

    async def work(client: Client) -> None:
        entries = await _members(client, name, Filters())
        if not entries:
            raise NotFound(f"nothing found in stack: {name}")
        ids = tuple(entry.service.id for entry in entries)
        limited = msgspec.structs.replace(await resolve_nodes(client, wanted), services=ids)
        rows = await task_rows(
            client,
            await client.tasks(limited),
            now_ns=SystemClock().now_ns(),
            trunc=not (no_trunc or quiet),
            resolve=not no_resolve,
        )
        output.write(output.rows_text(rows, columns=TASK_COLUMNS, template=template, quiet=quiet))

    session.run(work)


@stack.command("history")
@click.argument("name", metavar="STACK", shell_complete=complete_stacks)
@format_option
@click.pass_obj
def history(session: Session, name: str, template: str) -> None:
    """List the last ten revisions of a stack, the newest first."""

    async def work(client: Client) -> None:
        from swarmctl.render.stacks import REVISION_COLUMNS, revision_row
        from swarmctl.stacks import list_revisions

        found = await list_revisions(client, name)
        now_ns, newest = SystemClock().now_ns(), found[0].revision
        rows = [revision_row(one, now_ns, newest=newest) for one in found]
        output.write(output.rows_text(rows, columns=REVISION_COLUMNS, template=template))

    session.run(work)


@stack.command("config")
@click.argument("name", metavar="[STACK]", default="", shell_complete=complete_stacks)
@compose_option
@click.option(
    "--revision", type=click.IntRange(min=1), default=None, help="Of the stack (default: newest)"
)
@click.option("--skip-interpolation", is_flag=True, help="Leave variables as they are written")
@click.pass_obj
def config(
    session: Session,
    name: str,
    files: tuple[str, ...],
    revision: int | None,
    *,
    skip_interpolation: bool,
) -> None:
    """Print Compose files merged into one, or what a stack was deployed from.

    Without STACK nothing is asked of the cluster.
    """
    if bool(name) is bool(files):
        raise InvalidArgument("give either STACK, or Compose files with --compose-file")
    if files:
        if revision:
            raise InvalidArgument("--revision: is that of a stack, and goes with STACK only")
        from swarmctl.compose.project import project_text
        from swarmctl.compose_files import read_project

        output.write(project_text(read_project(files, variables=not skip_interpolation)))
        return
    if skip_interpolation:
        raise InvalidArgument("--skip-interpolation: goes with --compose-file only")

    async def work(client: Client) -> None:
        from swarmctl.stacks import get_stack

        output.write((await get_stack(client, name, revision or 0)).spec.source)

    session.run(work)


async def _members(client: Client, name: str, wanted: Filters) -> list[ServiceEntry]:
    """Services of a stack that fit, by name."""
    entries = await client.services(wanted)
    mine = [
        one for one in entries
        if one.service.spec.annotations.labels.get(NAMESPACE_LABEL) == name
    ]  # fmt: skip
    return sorted(mine, key=lambda entry: entry.service.spec.annotations.name)
