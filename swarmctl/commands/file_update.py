"""`secret update` and `config update`: another content, and the services that follow it, in turn.

Each service is updated for itself, as its update flags say, and the next one only when it has
converged: a content that is no good stops the first, and the others go on with the one before. One
that has contents swapped below its running tasks (`--secret-rotation live`) has converged when
every task says that it has the new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shoal.model.files import FileRow
from shoal.model.objects import Secret, Service
from shoal.model.specs import GlobalJobMode, ReplicatedJobMode
from swarmctl import output
from swarmctl.complete import complete_configs, complete_secrets
from swarmctl.edit.container import with_newest_files
from swarmctl.file_content import read_content
from swarmctl.options import detach_option, quiet_progress_option
from swarmctl.progress.display import make_display
from swarmctl.progress.loop import wait_converged
from swarmctl.session import Session
from swarmctl.swapping import is_live, wait_swapped

if TYPE_CHECKING:
    from swarmctl.client import Client


def update_command(kind: type[FileRow]) -> click.Command:
    """The command for secrets or configs."""
    noun = kind.__name__.lower()
    completed = complete_secrets if kind is Secret else complete_configs

    @click.command("update", help=_help(noun))
    @click.argument("name", metavar=noun.upper(), shell_complete=completed)
    @click.argument("file", metavar="FILE|-", type=click.Path(dir_okay=False, allow_dash=True))
    @click.option(
        "--restart/--no-restart", default=True, help="Whether services get it now (default: yes)"
    )
    @detach_option
    @quiet_progress_option
    @click.pass_obj
    def update(
        session: Session, name: str, file: str, *, restart: bool, detach: bool, quiet: bool
    ) -> None:
        data = read_content(kind, file)

        async def work(client: Client) -> None:
            from swarmctl.files import FileCalls

            row, service_ids = await FileCalls(client, kind).rotate(name, data)
            click.echo(row.id)
            services = [(await client.service(one)).service for one in service_ids]
            waiting = [one for one in services if restart and not _is_job(one)]
            behind = [one for one in services if one not in waiting]
            try:
                while waiting:
                    written = await _follow(client, kind, row, waiting[0])
                    if is_live(written):
                        if not detach:
                            await wait_swapped(client, written.id, row.id)
                    elif not detach:
                        with make_display(quiet=quiet) as display:
                            await wait_converged(client, written.id, display)
                    click.echo(f"{waiting.pop(0).spec.annotations.name} updated", err=True)
            finally:
                _say_behind([*waiting, *behind], noun)

        session.run(work)

    return update


async def _follow(client: Client, kind: type[FileRow], row: FileRow, service: Service) -> Service:
    newest = (await client.service(service.id)).service
    spec = with_newest_files(newest.spec, kind, row.spec.annotations.name)
    written = await client.update_service(newest, spec)
    output.warn(written.warnings)
    return written.service


def _say_behind(services: list[Service], noun: str) -> None:
    if services:
        names = ", ".join(one.spec.annotations.name for one in services)
        click.echo(f"still with an earlier content of the {noun}: {names}", err=True)


def _is_job(service: Service) -> bool:
    """An update would run it again."""
    return isinstance(service.spec.mode, ReplicatedJobMode | GlobalJobMode)


def _help(noun: str) -> str:
    return (
        f"Give a {noun} another content, of a file or of standard input (-).\n\n"
        f"Services that use the {noun} by its name are updated one after the other, each as its"
        " update flags say; a service can be rolled back to what it had. Jobs are not run again."
        " What was interrupted goes on with the same command."
    )
