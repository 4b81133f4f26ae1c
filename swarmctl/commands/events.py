"""events: what happens in the cluster, as it is committed."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from shoal.aio.backoff import Backoff
from shoal.clock import SystemClock
from shoal.errors import NotLeader, Unavailable
from swarmctl import output
from swarmctl.options import filter_option
from swarmctl.session import Session

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.docker.events import ClusterEvent
    from swarmctl.client import Client
    from swarmctl.events import Place

RETRY_S = 60.0
"""Without a manager for longer than this, the command ends."""
RETRY_PERIOD_MAX_S = 2.0


@click.command("events")
@filter_option
@click.option(
    "--since",
    "after",
    type=click.IntRange(min=0),
    default=0,
    metavar="VERSION",
    help="Begin after the event with this version (default: with what happens from now on)",
)
@click.option("--format", "template", default="", metavar="FORMAT", help="json, or a Go template")
@click.pass_obj
def events(session: Session, filters: tuple[str, ...], after: int, template: str) -> None:
    """Print what happens to services, tasks, nodes, networks, secrets and configs.

    Each line begins with a time and a version. When managers fail it goes on by itself, without a
    gap; started again with `--since VERSION` of the last line, too. When the managers do not reach
    back so far, it says so and from where on they do.

    Filters: type, event; service, task, node, network, secret, config by name or id: events of
    such an object, and of tasks of such services and nodes.
    """
    from swarmctl.events import (  # here: help and completion load no gRPC
        Place,
        event_json,
        event_text,
        follow,
        parse_wish,
    )

    wish, place, clock = parse_wish(filters), Place(after), SystemClock()

    def tell(version: int, event: ClusterEvent) -> None:
        row = event_json(version, event, clock.now_ns())
        text = output.objects_text([row], template) if template else f"{event_text(row)}\n"
        output.write(text)
        sys.stdout.flush()

    async def work(client: Client) -> None:
        await follow(client, wish, place, tell)

    _again_and_again(lambda: session.run(work), place)


def _again_and_again(attempt: Callable[[], None], place: Place) -> None:
    """Go on where it broke off; each attempt finds a manager that serves.

    Raises: Unavailable after `RETRY_S`, and at once where there is nothing to go on from.
    """
    backoff, heard, failed_at_s = Backoff(max_s=RETRY_PERIOD_MAX_S), -1, 0.0
    while True:
        try:
            attempt()
        except (Unavailable, NotLeader):
            if place.heard != heard:
                heard, failed_at_s = place.heard, time.monotonic()
                backoff.reset()
            if not place.version or time.monotonic() - failed_at_s > RETRY_S:
                raise
        time.sleep(backoff.next_s())
