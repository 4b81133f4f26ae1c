"""--plan and --check-version of the commands that change services."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import click

from shoal.errors import InvalidArgument
from swarmctl import output
from swarmctl.each import exit_with
from swarmctl.exits import FAILURE, NO_CHANGE
from swarmctl.options import combined
from swarmctl.session import Session

if TYPE_CHECKING:
    from shoal.api.v1.control_pb2 import PlannedCall
    from shoal.model.specs import ServiceSpec
    from swarmctl.client import Client

Prepare = Callable[["Client"], Awaitable["PlannedCall"]]
"""Reads what a call needs to know, and makes it up; it is not made."""

plan_options = combined(
    click.option("--plan", is_flag=True, help="Say what would change, and change nothing"),
    click.option(
        "--format",
        "template",
        default="",
        metavar="FORMAT",
        help="Of the plan: json or a Go template",
    ),
)
check_version_option = click.option(
    "--check-version",
    type=click.IntRange(min=1),
    callback=lambda _ctx, _param, value: value or 0,
    metavar="VERSION",
    help="Refuse when the service has another version by now; --plan names it",
)


def require_plan(template: str, *, plan: bool) -> None:
    """Refuse a format where nothing is planned that could have it."""
    if template and not plan:
        raise InvalidArgument("--format: is that of the plan, and goes with --plan only")


def require_one(names: Sequence[str], check_version: int) -> None:
    """Refuse one version for several services."""
    if check_version and len(names) > 1:
        raise InvalidArgument(
            f"--check-version: is that of one service, {len(names)} are named: "
            "change them one after the other"
        )


def creation_of(spec: ServiceSpec) -> Prepare:
    """Has a service created."""

    async def prepared(_client: Client) -> PlannedCall:
        from swarmctl.plans import creation  # here: it needs the client

        return creation(spec)

    return prepared


def removal_of(name: str, version: int) -> Prepare:
    """Has a service removed; version: 0 for whatever is there."""

    async def prepared(_client: Client) -> PlannedCall:
        from swarmctl.plans import removal  # here: it needs the client

        return removal(name, version=version)

    return prepared


def show_plan(session: Session, prepared: Sequence[Prepare], template: str) -> None:
    """Print what the calls would do. Exit codes: those of refused calls, FAILURE, NO_CHANGE."""

    async def work(client: Client) -> None:
        from swarmctl import plans
        from swarmctl.render.plans import NOTHING, plan_text

        answer = await plans.plan_changes(client, [await prepare(client) for prepare in prepared])
        if template:
            output.write(output.objects_text([plans.plan_json(answer)], template))
        elif plans.changes_nothing(answer):
            click.echo(NOTHING)
        else:
            output.write(plan_text(answer))
        exit_with(plans.refusals(answer))
        if plans.changes_nothing(answer):
            raise click.exceptions.Exit(NO_CHANGE)
        if plans.would_fail(answer):
            raise click.exceptions.Exit(FAILURE)

    session.run(work)
