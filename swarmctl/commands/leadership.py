"""cluster transfer-leadership: another manager leads, without an election that has to find out."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from shoal.errors import DeadlineExceeded, SwarmError
from swarmctl.complete import complete_nodes
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

__all__ = ["transfer_leadership"]

WAIT_S = 15.0
POLL_PERIOD_S = 0.2


@click.command("transfer-leadership", short_help="Let another manager lead")
@click.argument("node", required=False, default="", shell_complete=complete_nodes)
@click.pass_obj
def transfer_leadership(session: Session, node: str) -> None:
    """Let the manager on NODE lead, or the one that lacks least; containers do not notice.

    Writes that come while leadership changes wait for a moment, or are told to try again.
    """

    async def work(client: Client) -> str:
        chosen = await client.transfer_leadership(node)
        await _wait(client, chosen)
        return chosen

    click.echo(f"Node {session.run(work)} leads the cluster.")


async def _wait(client: Client, chosen: str) -> None:
    """Until the nodes' rows say that it leads."""
    leader, error = "", None
    try:
        async with asyncio.timeout(WAIT_S):
            while leader != chosen:
                try:
                    leader, error = await _leader(client), None
                except SwarmError as failed:
                    if not failed.retryable:
                        raise
                    error = failed  # nobody leads for a moment
                await asyncio.sleep(POLL_PERIOD_S)
    except TimeoutError:
        why = f"{leader or 'nobody'} does" if error is None else error.message
        raise DeadlineExceeded(
            f"node {chosen} does not lead after {WAIT_S:g} s ({why}): try again"
        ) from error


async def _leader(client: Client) -> str:
    nodes = await client.nodes()
    return next((one.id for one in nodes if one.manager_status and one.manager_status.leader), "")
