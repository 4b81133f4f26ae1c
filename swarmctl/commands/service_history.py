"""service history: the specs a service had, to look at and to go back to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shoal.clock import SystemClock
from shoal.errors import NotFound
from swarmctl import output
from swarmctl.complete import complete_services
from swarmctl.options import format_option, no_trunc_option
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client


@click.command("history")
@click.argument("name", metavar="SERVICE", shell_complete=complete_services)
@click.option(
    "--revision", type=click.IntRange(min=1), metavar="N", help="Show the whole spec of this one"
)
@format_option
@no_trunc_option
@click.pass_obj
def history(
    session: Session, name: str, template: str, *, revision: int | None, no_trunc: bool
) -> None:
    """List the last 10 revisions of a service, the newest first.

    The one in force has a star. `service rollback --to N` goes back to another.
    """

    async def work(client: Client) -> None:
        from swarmctl.revisions import (
            REVISION_COLUMNS,
            revision_json,
            revision_rows,
            service_revisions,
        )

        current, kept = await service_revisions(client, name)
        if revision is not None:
            found = [revision_json(one) for one in kept if one.number == revision]
            if not found:
                raise NotFound(f"revision {revision} of service {name} is not kept")
            output.write(output.objects_text(found, template))
            return
        now_ns = SystemClock().now_ns()
        rows = revision_rows(kept, current, now_ns=now_ns, trunc=not no_trunc)
        output.write(output.rows_text(rows, columns=REVISION_COLUMNS, template=template))

    session.run(work)
