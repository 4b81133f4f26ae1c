"""context ls, use, show, create, rm."""

from __future__ import annotations

import os

import click

from shoal.docker.values import Record
from shoal.errors import InvalidArgument, NotFound
from swarmctl import contexts, output
from swarmctl.complete import complete_contexts
from swarmctl.each import exit_with
from swarmctl.options import format_option
from swarmctl.parsing.values import parse_pair
from swarmctl.render.rows import CONTEXT_COLUMNS
from swarmctl.session import Session
from swarmctl.target import choice_of_context


@click.group()
def context() -> None:
    """Names for clusters, and which one commands talk to."""


@context.command("ls")
@format_option
@click.option("-q", "--quiet", is_flag=True, help="Only print names")
@click.pass_obj
def list_contexts(session: Session, template: str, *, quiet: bool) -> None:
    """List contexts; `*` marks the one in force."""
    stored = contexts.load()
    current = choice_of_context(session.choice, os.environ, stored)
    names = [contexts.DEFAULT_CONTEXT, *sorted(stored.contexts)]
    rows = []
    for name in names:
        item = stored.get(name)
        mark = " *" if name == current and not (template or quiet) else ""
        rows.append(
            Record(
                {
                    "Name": f"{name}{mark}",
                    "Current": name == current,
                    "Description": item.description,
                    "Host": item.host,
                    "Nodes": str(len(item.nodes) or ""),
                }
            )
        )
    output.write(output.rows_text(rows, columns=CONTEXT_COLUMNS, template=template, quiet=quiet))


@context.command("show")
@click.pass_obj
def show_context(session: Session) -> None:
    """Print the name of the context in force."""
    click.echo(choice_of_context(session.choice, os.environ, contexts.load()))


@context.command("use")
@click.argument("name", shell_complete=complete_contexts)
def use_context(name: str) -> None:
    """Make a context the current one."""
    contexts.use(name)
    click.echo(name)
    for variable in ("SWARM_HOST", "SWARM_CONTEXT"):
        if os.environ.get(variable):
            output.warn([f"{variable} is set and goes before the current context"])


@context.command("create")
@click.argument("name")
@click.option(
    "--host",
    "hosts",
    required=True,
    multiple=True,
    metavar="HOST",
    help="unix:// or tcp:// address; further ones are tried when the first does not serve",
)
@click.option(
    "--node",
    "nodes",
    multiple=True,
    metavar="NAME=HOST",
    help="Daemon of a node, for image commands",
)
@click.option("--description", default="", help="What it is")
def create_context(
    name: str, hosts: tuple[str, ...], nodes: tuple[str, ...], description: str
) -> None:
    """Create a context, or replace one."""
    sockets = dict(parse_pair(pair) for pair in nodes)
    for address in (*hosts, *sockets.values()):
        if not address.startswith(("unix:///", "tcp://")):
            raise InvalidArgument(
                f"host {address!r}: write unix:///path/to/swarmd.sock or tcp://host:2377"
            )
    contexts.save_context(
        name,
        contexts.Context(host=hosts[0], others=hosts[1:], nodes=sockets, description=description),
    )
    click.echo(name)


@context.command("rm")
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_contexts
)
def remove_contexts(names: tuple[str, ...]) -> None:
    """Forget contexts."""
    errors: list[NotFound] = []
    for name in names:
        try:
            contexts.remove(name)
            click.echo(name)
        except NotFound as error:
            errors.append(error)
    exit_with(errors)
