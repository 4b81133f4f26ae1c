"""The groups secret and config: content that services' tasks see as files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from shoal.docker.files import file_json
from shoal.errors import InvalidArgument, NotFound
from shoal.model.files import FileRow, is_former
from shoal.model.objects import Config, Secret
from shoal.model.specs import ConfigSpec, SecretSpec
from shoal.model.types import Annotations, Driver
from swarmctl import output
from swarmctl.commands.file_update import update_command
from swarmctl.complete import complete_configs, complete_secrets
from swarmctl.each import each, exit_with
from swarmctl.file_content import read_content
from swarmctl.filters import FILE_RULES, parse_filters
from swarmctl.options import (
    FunctionT,
    Parsed,
    filter_option,
    format_option,
    inspect_format_option,
    quiet_option,
)
from swarmctl.parsing.values import parse_pair
from swarmctl.render.files import (
    CONFIG_COLUMNS,
    SECRET_COLUMNS,
    file_row,
    file_text,
)
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

PAIR = Parsed("key=value", parse_pair)


def _group(kind: type[FileRow], about: str) -> click.Group:
    commands = (
        _create(kind), _list(kind), _inspect(kind), update_command(kind), _remove(kind),
    )  # fmt: skip
    return click.Group(
        _noun(kind), help=about, commands={str(command.name): command for command in commands}
    )


def _noun(kind: type[FileRow]) -> str:
    return kind.__name__.lower()


def _names_argument(kind: type[FileRow]) -> Callable[[FunctionT], FunctionT]:
    completed = complete_secrets if kind is Secret else complete_configs
    metavar = f"{_noun(kind).upper()}..."
    return click.argument(
        "names", nargs=-1, required=True, metavar=metavar, shell_complete=completed
    )


def _create(kind: type[FileRow]) -> click.Command:
    noun = _noun(kind)

    @click.command(
        "create",
        help=f"Create a {noun} of a file, or of standard input (-).",
    )
    @click.argument("name", metavar=noun.upper())
    @click.argument("file", metavar="FILE|-", type=click.Path(dir_okay=False, allow_dash=True))
    @click.option("-l", "--label", "labels", multiple=True, type=PAIR, help=f"Label of the {noun}")
    @click.option(
        "--template-driver", default="", help="golang: placeholders are replaced for each task"
    )
    @click.pass_obj
    def create(
        session: Session,
        /,
        name: str,
        *,
        file: str,
        labels: tuple[tuple[str, str], ...],
        template_driver: str,
        driver: str = "",
    ) -> None:
        spec = (SecretSpec if kind is Secret else ConfigSpec)(
            annotations=Annotations(name=name, labels=dict(labels)),
            data=read_content(kind, file),
            templating=Driver(template_driver) if template_driver else None,
        )

        if driver and isinstance(spec, SecretSpec):
            spec = spec.replaced(driver=Driver(driver))

        async def work(client: Client) -> None:
            from swarmctl.files import FileCalls

            click.echo((await FileCalls(client, kind).create(spec)).id)

        session.run(work)

    if kind is Secret:  # docker's; the managers say that they have none
        create.params.append(click.Option(["-d", "--driver"], default="", hidden=True))
    return create


def _list(kind: type[FileRow]) -> click.Command:
    @click.command("ls", help=f"List {_noun(kind)}s.\n\nFilters: id, name, label.")
    @filter_option
    @format_option
    @quiet_option
    @click.option("-a", "--all", "former", is_flag=True, help="Former contents that are kept too")
    @click.pass_obj
    def list_all(
        session: Session, filters: tuple[str, ...], template: str, *, quiet: bool, former: bool
    ) -> None:
        wanted = parse_filters(filters, FILE_RULES)

        async def work(client: Client) -> None:
            from swarmctl.files import FileCalls

            found = await FileCalls(client, kind).list(wanted)
            found.sort(key=lambda row: row.spec.annotations.name)
            columns = SECRET_COLUMNS if kind is Secret else CONFIG_COLUMNS
            shown = [one for one in found if former or not is_former(one)]
            rows = [file_row(one, time.time_ns()) for one in shown]
            output.write(output.rows_text(rows, columns=columns, template=template, quiet=quiet))

        session.run(work)

    return list_all


def _inspect(kind: type[FileRow]) -> click.Command:
    hidden = ", but for their data" if kind is Secret else ""

    @click.command("inspect", help=f"Show everything about {_noun(kind)}s{hidden}.")
    @_names_argument(kind)
    @inspect_format_option
    @click.option("--pretty", is_flag=True, help="For people")
    @click.pass_obj
    def inspect(session: Session, names: tuple[str, ...], template: str, *, pretty: bool) -> None:
        if pretty and template:
            raise InvalidArgument("--pretty and --format exclude each other: give one of them")

        async def work(client: Client) -> None:
            from swarmctl.files import FileCalls

            found, errors = await each(names, FileCalls(client, kind).get)
            if pretty:
                output.write("\n".join(file_text(row) for row in found))
            else:
                output.write(output.objects_text([file_json(row) for row in found], template))
            exit_with(errors)

        session.run(work)

    return inspect


def _remove(kind: type[FileRow]) -> click.Command:
    noun = _noun(kind)

    @click.command("rm", help=f"Remove {noun}s that no service uses.")
    @_names_argument(kind)
    @click.option("-f", "--force", is_flag=True, help=f"No error when a {noun} is not there")
    @click.pass_obj
    def remove(session: Session, names: tuple[str, ...], *, force: bool) -> None:
        async def work(client: Client) -> None:
            from swarmctl.files import FileCalls

            async def one(name: str) -> None:
                try:
                    await FileCalls(client, kind).remove(name)
                except NotFound:
                    if not force:
                        raise
                else:
                    click.echo(name)

            _, errors = await each(names, one)
            exit_with(errors)

        session.run(work)

    return remove


secret = _group(Secret, "Secrets: files for tasks that are shown to nobody else.")
config = _group(Config, "Configs: files for tasks that need no secrecy.")
