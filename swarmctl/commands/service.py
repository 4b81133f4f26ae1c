"""The service group: reads here, writes in `service_write`, logs in `service_logs`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from shoal.clock import SystemClock
from shoal.docker.objects import service_json
from shoal.errors import InvalidArgument
from swarmctl import output
from swarmctl.commands.service_explain import explain
from swarmctl.commands.service_history import history
from swarmctl.commands.service_logs import service_logs
from swarmctl.commands.service_rebalance import rebalance_services
from swarmctl.commands.service_run import run_service
from swarmctl.commands.service_write import (
    create_service,
    remove_services,
    rollback_service,
    scale_services,
    update_service,
)
from swarmctl.complete import complete_services
from swarmctl.each import each, exit_with
from swarmctl.filters import SERVICE_RULES, TASK_RULES, parse_filters
from swarmctl.options import (
    filter_option,
    format_option,
    inspect_format_option,
    no_resolve_option,
    no_trunc_option,
    quiet_option,
)
from swarmctl.render.pretty import service_text
from swarmctl.render.rows import SERVICE_COLUMNS, TASK_COLUMNS, service_row
from swarmctl.session import Session
from swarmctl.tasks import node_names, resolve_nodes, task_rows

if TYPE_CHECKING:
    from swarmctl.client import Client


@click.group()
def service() -> None:
    """Services of the cluster."""


service.add_command(create_service)
service.add_command(run_service)
service.add_command(update_service)
service.add_command(scale_services)
service.add_command(rollback_service)
service.add_command(remove_services)
service.add_command(service_logs)
service.add_command(explain)
service.add_command(rebalance_services)
service.add_command(history)


@service.command("ls")
@filter_option
@format_option
@quiet_option
@click.pass_obj
def list_services(
    session: Session, filters: tuple[str, ...], template: str, *, quiet: bool
) -> None:
    """List services.

    Filters: id, name, label, mode.
    """
    wanted = parse_filters(filters, SERVICE_RULES)

    async def work(client: Client) -> None:
        entries = await client.services(wanted)
        rows = [
            service_row(entry)
            for entry in sorted(entries, key=lambda entry: entry.service.spec.annotations.name)
        ]
        output.write(
            output.rows_text(rows, columns=SERVICE_COLUMNS, template=template, quiet=quiet)
        )

    session.run(work)


@service.command("ps")
@click.argument(
    "names", nargs=-1, required=True, metavar="SERVICE...", shell_complete=complete_services
)
@filter_option
@format_option
@quiet_option
@no_resolve_option
@no_trunc_option
@click.pass_obj
def list_tasks_of_services(
    session: Session,
    names: tuple[str, ...],
    filters: tuple[str, ...],
    template: str,
    *,
    quiet: bool,
    no_resolve: bool,
    no_trunc: bool,
) -> None:
    """List the tasks of services.

    Filters: id, name, node, desired-state (running, shutdown, accepted).
    """
    wanted = parse_filters(filters, TASK_RULES)

    async def work(client: Client) -> None:
        entries, errors = await each(names, client.service)
        ids = tuple(entry.service.id for entry in entries)
        limited = msgspec.structs.replace(await resolve_nodes(client, wanted), services=ids)
        rows = await task_rows(
            client,
            await client.tasks(limited) if ids else [],
            now_ns=SystemClock().now_ns(),
            trunc=not (no_trunc or quiet),
            resolve=not no_resolve,
        )
        if ids:
            output.write(
                output.rows_text(rows, columns=TASK_COLUMNS, template=template, quiet=quiet)
            )
        exit_with(errors)

    session.run(work)


@service.command("endpoints")
@click.argument("name", metavar="SERVICE", shell_complete=complete_services)
@click.option("--nodes", is_flag=True, help="What each node has put in force, and cannot serve")
@format_option
@no_resolve_option
@click.pass_obj
def list_endpoints(
    session: Session, name: str, template: str, *, nodes: bool, no_resolve: bool
) -> None:
    """List the tasks behind a service's published ports and names.

    READY tasks take new connections. A DRAINING one waits for nodes that may still send it some.
    """

    async def work(client: Client) -> None:
        from swarmctl.endpoints import (
            ENDPOINT_COLUMNS,
            NODE_COLUMNS,
            endpoint_row,
            network_row,
            node_row,
            service_endpoints,
        )

        answer = await service_endpoints(client, name)
        names = {} if no_resolve else await node_names(client)
        if nodes:
            rows = [node_row(item, answer.version, names) for item in answer.nodes]
        else:
            rows = [endpoint_row(item, names) for item in answer.endpoints]
            rows += [network_row(item, names) for item in answer.network_endpoints]
        columns = NODE_COLUMNS if nodes else ENDPOINT_COLUMNS
        output.write(output.rows_text(rows, columns=columns, template=template))

    session.run(work)


@service.command("inspect")
@click.argument(
    "names", nargs=-1, required=True, metavar="SERVICE...", shell_complete=complete_services
)
@inspect_format_option
@click.option("--pretty", is_flag=True, help="For people")
@click.pass_obj
def inspect_services(
    session: Session, names: tuple[str, ...], template: str, *, pretty: bool
) -> None:
    """Show everything about services."""
    if pretty and template:
        raise InvalidArgument("--pretty and --format exclude each other: give one of them")

    async def work(client: Client) -> None:
        entries, errors = await each(names, lambda name: client.service(name, insert_defaults=True))
        now_ns = SystemClock().now_ns()
        if pretty:
            output.write("\n".join(service_text(item.service, now_ns) for item in entries))
        else:
            objects = [service_json(item.service, item.counts) for item in entries]
            output.write(output.objects_text(objects, template))
        exit_with(errors)

    session.run(work)
