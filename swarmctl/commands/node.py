"""node ls, inspect, update, promote, demote, ps, rm; drain and its kin: `node_availability`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
import msgspec

from shoal.clock import SystemClock
from shoal.docker.objects import node_json
from shoal.docker.words import spell
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.enums import NodeAvailability, NodeRole
from shoal.model.objects import Node
from swarmctl import output
from swarmctl.commands.node_availability import activate, drain, pause
from swarmctl.complete import complete_nodes
from swarmctl.each import each, exit_with
from swarmctl.edit.lists import edited_map
from swarmctl.exits import CommandFailed
from swarmctl.filters import NODE_RULES, TASK_RULES, parse_filters
from swarmctl.options import (
    Parsed,
    Word,
    filter_option,
    format_option,
    given,
    inspect_format_option,
    no_resolve_option,
    no_trunc_option,
    quiet_option,
)
from swarmctl.parsing.values import parse_pair
from swarmctl.render.pretty import node_text, role_obstacle
from swarmctl.render.rows import NODE_COLUMNS, TASK_COLUMNS, node_row
from swarmctl.render.tables import one_line
from swarmctl.session import Session
from swarmctl.tasks import resolve_nodes, task_rows

if TYPE_CHECKING:
    from swarmctl.client import Client

SELF = "self"


@click.group()
def node() -> None:
    """Nodes of the cluster."""


for _command in (activate, drain, pause):
    node.add_command(_command)


@node.command("ls")
@filter_option
@format_option
@quiet_option
@click.pass_obj
def list_nodes(session: Session, filters: tuple[str, ...], template: str, *, quiet: bool) -> None:
    """List nodes; `*` marks the one that answers.

    What keeps a node from the role it was given stands below the table.
    Filters: id, name, label (of the engine), node.label, role, membership.
    """
    wanted = parse_filters(filters, NODE_RULES)

    async def work(client: Client) -> None:
        nodes = await client.nodes(wanted)
        nodes.sort(key=lambda item: (item.description.hostname, item.id))
        self_id = (await client.info()).node_id
        rows = [node_row(item, self_id) for item in nodes]
        output.write(output.rows_text(rows, columns=NODE_COLUMNS, template=template, quiet=quiet))
        if template or quiet:
            return
        for item in nodes:
            if item.role_message:
                name = item.description.hostname or item.id
                click.echo(f"{name} is {one_line(role_obstacle(item))}", err=True)

    session.run(work)


@node.command("inspect")
@click.argument(
    "names", nargs=-1, required=True, metavar="self|NODE...", shell_complete=complete_nodes
)
@inspect_format_option
@click.option("--pretty", is_flag=True, help="For people")
@click.pass_obj
def inspect_nodes(session: Session, names: tuple[str, ...], template: str, *, pretty: bool) -> None:
    """Show everything about nodes."""
    if pretty and template:
        raise InvalidArgument("--pretty and --format exclude each other: give one of them")

    async def work(client: Client) -> None:
        nodes, errors = await each(names, lambda name: _get(client, name))
        if pretty:
            output.write("\n".join(node_text(item) for item in nodes))
        else:
            output.write(output.objects_text([node_json(item) for item in nodes], template))
        exit_with(errors)

    session.run(work)


@node.command("update")
@click.argument("name", metavar="NODE", shell_complete=complete_nodes)
@click.option(
    "--availability", type=Word(*NodeAvailability), help="active, pause or drain (all stops now)"
)
@click.option(
    "--label-add", type=Parsed("key=value", parse_pair), multiple=True, help="Add or change a label"
)
@click.option("--label-rm", multiple=True, metavar="KEY", help="Remove a label")
@click.option("--role", type=Word(*NodeRole), help="worker or manager")
@click.pass_obj
def update_node(session: Session, /, name: str, **flags: Any) -> None:
    """Change a node's availability, labels and role."""
    changes = given(flags)

    async def work(client: Client) -> None:
        found = await _get(client, name)
        labels = found.spec.annotations.labels
        missing = [key for key in changes.get("label_rm", ()) if key not in labels]
        if missing:
            raise FailedPrecondition(f"--label-rm {missing[0]}: node {name} has no such label")
        annotations = found.spec.annotations.replaced(labels=edited_map(labels, changes, "label"))
        spec = found.spec.replaced(
            annotations=annotations,
            availability=changes.get("availability", found.spec.availability),
            drain=None if "availability" in changes else found.spec.drain,
            desired_role=changes.get("role", found.spec.desired_role),
        )
        await client.update_node(found, spec)
        click.echo(name)

    session.run(work)


@node.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...", shell_complete=complete_nodes)
@click.pass_obj
def promote(session: Session, names: tuple[str, ...]) -> None:
    """Make nodes managers; `node ls` shows when they are. Their containers run on."""
    _change_role(session, names, NodeRole.MANAGER)


@node.command()
@click.argument("names", nargs=-1, required=True, metavar="NODE...", shell_complete=complete_nodes)
@click.pass_obj
def demote(session: Session, names: tuple[str, ...]) -> None:
    """Make managers workers; refused where too few managers would be left."""
    _change_role(session, names, NodeRole.WORKER)


def _change_role(session: Session, names: tuple[str, ...], role: NodeRole) -> None:
    article = f"a {spell(role)}"

    async def work(client: Client) -> None:
        async def change(name: str) -> None:
            found = await _get(client, name)
            if found.spec.desired_role is role:
                click.echo(f"Node {name} is already {article}.")
                return
            await client.update_node(found, found.spec.replaced(desired_role=role))
            promoted = role is NodeRole.MANAGER
            done = f"Node {name} promoted to a manager" if promoted else f"Manager {name} demoted"
            click.echo(f"{done} in the swarm.")

        _, errors = await each(names, change)
        exit_with(errors)

    session.run(work)


@node.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="NODE...", shell_complete=complete_nodes)
@click.option("-f", "--force", is_flag=True, help="Remove a node although it is not down")
@click.pass_obj
def remove_nodes(session: Session, names: tuple[str, ...], *, force: bool) -> None:
    """Take nodes out of the cluster."""

    async def work(client: Client) -> None:
        async def remove(name: str) -> None:
            await client.remove_node(name, force=force)
            click.echo(name)

        _, errors = await each(names, remove)
        exit_with(errors)

    session.run(work)


@node.command("ps")
@click.argument("names", nargs=-1, metavar="[NODE...]", shell_complete=complete_nodes)
@filter_option
@format_option
@quiet_option
@no_resolve_option
@no_trunc_option
@click.pass_obj
def list_tasks_of_nodes(
    session: Session,
    names: tuple[str, ...],
    filters: tuple[str, ...],
    template: str,
    *,
    quiet: bool,
    no_resolve: bool,
    no_trunc: bool,
) -> None:
    """List the tasks of nodes, by default of the one that answers."""
    wanted = parse_filters(filters, TASK_RULES)

    async def work(client: Client) -> None:
        nodes, errors = await each(names or (SELF,), lambda name: _get(client, name))
        ids = tuple(item.id for item in nodes)
        limited = await resolve_nodes(client, wanted)
        tasks = await client.tasks(msgspec.structs.replace(limited, nodes=ids)) if ids else []
        if limited.nodes:
            tasks = [task for task in tasks if task.node_id in limited.nodes]
        rows = await task_rows(
            client,
            tasks,
            now_ns=SystemClock().now_ns(),
            trunc=not (no_trunc or quiet),
            resolve=not no_resolve,
        )
        output.write(output.rows_text(rows, columns=TASK_COLUMNS, template=template, quiet=quiet))
        exit_with(errors)

    session.run(work)


@node.command("doctor")
@format_option
@click.pass_obj
def examine_node(session: Session, template: str) -> None:
    """Look for what is wrong with the node that answers, and say what to do.

    Looks at its processes, kernel settings, MTU, connection tracking and clock, and whether the
    other nodes answer, below the mesh and through it. The exit code is 1 if there is a problem.
    """

    async def work(client: Client) -> None:
        from swarmctl.doctor import FINDING_COLUMNS, diagnose, finding_row, problems

        found = await diagnose(client)
        rows = [finding_row(item) for item in found]
        output.write(output.rows_text(rows, columns=FINDING_COLUMNS, template=template))
        if count := problems(found):
            raise CommandFailed(f"{count} problem{'s' if count > 1 else ''} found")

    session.run(work)


async def _get(client: Client, name: str) -> Node:
    return await client.node((await client.info()).node_id if name == SELF else name)
