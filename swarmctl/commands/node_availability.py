"""node drain, pause, activate: whether nodes take tasks, and keep those they have."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, InvalidArgument, SwarmError
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import NodeAvailability, NodeState
from shoal.model.objects import Node, Task
from shoal.model.types import DrainPolicy
from swarmctl.complete import complete_nodes
from swarmctl.each import each, exit_with
from swarmctl.options import Parsed
from swarmctl.parsing.units import parse_duration
from swarmctl.session import Session
from swarmctl.types import Filters

if TYPE_CHECKING:
    from swarmctl.client import Client

POLL_PERIOD_S = 0.5
SILENCE_MAX_S = 60.0
"""How long --wait bears that no manager answers, as when another one is about to lead."""

_nodes_argument = click.argument(
    "names", nargs=-1, required=True, metavar="NODE...", shell_complete=complete_nodes
)


@click.command("drain")
@_nodes_argument
@click.option(
    "--deadline",
    type=Parsed("duration", parse_duration),
    help="Stop what is left after this time (default 1h)",
)
@click.option("--stop-first", is_flag=True, help="Stop all tasks now, start them elsewhere then")
@click.option("--wait", is_flag=True, help="Return when the nodes are empty")
@click.pass_obj
def drain(
    session: Session, names: tuple[str, ...], deadline: int | None, *, stop_first: bool, wait: bool
) -> None:
    """Empty nodes: their tasks start elsewhere, then they stop here.

    A task goes on until the one that replaces it runs. Tasks of global services stop at once, as
    do those of services with --disconnect-action wait, which must not have two. Jobs may end their
    work. At the deadline all that is left stops. `node update --availability drain` and
    --stop-first are Swarm's drain: everything stops at once.
    """
    if stop_first and deadline is not None:
        raise InvalidArgument("--deadline and --stop-first exclude each other: give one of them")
    policy = None if stop_first else DrainPolicy(deadline_ns=deadline)

    async def work(client: Client) -> None:
        drained, errors = await each(
            names, lambda name: _set(client, name, NodeAvailability.DRAIN, policy)
        )
        if wait:
            _, failures = await each(
                [node.id for node in drained], lambda node_id: _wait_empty(client, node_id)
            )
            errors += failures
        exit_with(errors)

    session.run(work)


@click.command("pause")
@_nodes_argument
@click.pass_obj
def pause(session: Session, names: tuple[str, ...]) -> None:
    """Give nodes no new tasks; those they have run on."""
    _set_all(session, names, NodeAvailability.PAUSE)


@click.command("activate")
@_nodes_argument
@click.pass_obj
def activate(session: Session, names: tuple[str, ...]) -> None:
    """Let nodes take tasks again; none moves back by itself."""
    _set_all(session, names, NodeAvailability.ACTIVE)


def _set_all(session: Session, names: tuple[str, ...], availability: NodeAvailability) -> None:
    async def work(client: Client) -> None:
        _, errors = await each(names, lambda name: _set(client, name, availability, None))
        exit_with(errors)

    session.run(work)


async def _set(
    client: Client, name: str, availability: NodeAvailability, policy: DrainPolicy | None
) -> Node:
    found = await client.node((await client.info()).node_id if name == "self" else name)
    node = await client.update_node(
        found, found.spec.replaced(availability=availability, drain=policy)
    )
    click.echo(name)
    return node


async def _wait_empty(client: Client, node_id: str) -> None:
    """Return when nothing of the node's tasks runs any more; says what is left."""
    clock, said = SystemClock(), ""
    heard_at_s = clock.monotonic_s()
    while True:
        try:
            node, tasks = await asyncio.gather(
                client.node(node_id), client.tasks(Filters(nodes=(node_id,)))
            )
            heard_at_s = clock.monotonic_s()
        except SwarmError as error:
            if not error.retryable or clock.monotonic_s() - heard_at_s > SILENCE_MAX_S:
                raise
        else:
            left = [task for task in tasks if not is_terminal(task)]
            if _is_over(node, left):
                return
            if (saying := left_text(node, left)) != said:
                said = saying
                click.echo(said, err=True)
        await asyncio.sleep(POLL_PERIOD_S)


def _is_over(node: Node, left: list[Task]) -> bool:
    name = node.description.hostname or node.id
    if not left:
        return True
    if node.spec.availability is not NodeAvailability.DRAIN:
        raise FailedPrecondition(f"node {name} is not drained any more: {len(left)} tasks are left")
    if node.status.state is NodeState.DOWN:
        raise FailedPrecondition(f"node {name} is down: {len(left)} tasks may run on there")
    return False


def left_text(node: Node, left: list[Task]) -> str:
    """What is left on a node that is drained."""
    staying = sum(is_wanted(task) for task in left)
    parts = [
        f"{count} {what}"
        for count, what in ((staying, "to be replaced"), (len(left) - staying, "stopping"))
        if count
    ]
    noun = "task" if len(left) == 1 else "tasks"
    return f"{node.description.hostname or node.id}: {len(left)} {noun} left, {', '.join(parts)}"
