"""service rebalance: move tasks from fuller to emptier nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shoal.errors import InvalidArgument
from swarmctl import output
from swarmctl.complete import complete_services
from swarmctl.options import format_option
from swarmctl.session import Session
from swarmctl.tasks import node_names

if TYPE_CHECKING:
    from swarmctl.client import Client


@click.command("rebalance")
@click.argument("names", nargs=-1, metavar="[SERVICE...]", shell_complete=complete_services)
@click.option("--all", "every", is_flag=True, help="All services that can be moved")
@click.option("--plan", "plan_only", is_flag=True, help="Only show what would be moved")
@click.option("-d", "--detach", is_flag=True, help="Do not wait until the tasks have moved")
@format_option
@click.pass_obj
def rebalance_services(
    session: Session,
    names: tuple[str, ...],
    template: str,
    *,
    every: bool,
    plan_only: bool,
    detach: bool,
) -> None:
    """Move tasks from fuller to emptier nodes, as after a node has joined or come back.

    A task goes on until the one that replaces it runs. At once are moved as many of a service as
    --update-parallelism says (default 1). Nodes on pause neither get nor lose tasks.
    """
    if every == bool(names):
        raise InvalidArgument("either name services, or give --all")

    async def work(client: Client) -> None:
        from swarmctl.rebalance import MOVE_COLUMNS, move_row, rebalance, wait_moved

        answer = await rebalance(client, names, plan_only=plan_only)
        nodes = await node_names(client) if answer.moves else {}
        rows = [move_row(move, nodes) for move in answer.moves]
        output.write(output.rows_text(rows, columns=MOVE_COLUMNS, template=template))
        for one in answer.unmovable:
            click.echo(f"{one.service_name} is left as it is: {one.reason}", err=True)
        if answer.more:
            click.echo("there is more to move than is listed here", err=True)
        elif not rows:
            click.echo("nothing to move", err=True)
        if answer.moves and not plan_only and not detach:
            await wait_moved(client, sorted({move.service_id for move in answer.moves}))

    session.run(work)
