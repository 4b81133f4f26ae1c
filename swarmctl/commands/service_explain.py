"""service explain: why tasks do not run, what an update waits for, what went wrong lately."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shoal.clock import SystemClock
from swarmctl import output
from swarmctl.complete import complete_services
from swarmctl.options import inspect_format_option
from swarmctl.session import Session
from swarmctl.tasks import node_names

if TYPE_CHECKING:
    from swarmctl.client import Client


@click.command("explain")
@click.argument("name", metavar="SERVICE", shell_complete=complete_services)
@inspect_format_option
@click.pass_obj
def explain(session: Session, name: str, template: str) -> None:
    """Say why a service is not as it is wished.

    Each node's reasons against tasks that wait for a place, by filter; what the other tasks and an
    update wait for; the errors with which tasks ended, counted, as far as ended tasks are kept.
    """

    async def work(client: Client) -> None:
        from swarmctl.explain import explain_service, explanation_json, explanation_text

        answer = await explain_service(client, name)
        if template:
            output.write(output.objects_text([explanation_json(answer)], template))
            return
        names = await node_names(client) if answer.failures else {}
        output.write(explanation_text(answer, names, now_ns=SystemClock().now_ns()))

    session.run(work)
