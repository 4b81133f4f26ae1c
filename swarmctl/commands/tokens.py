"""join-token worker, manager, create, ls, rm: the invitations of the cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shoal.clock import SystemClock
from shoal.docker.values import Record
from shoal.docker.words import spell
from shoal.model.enums import NodeRole
from shoal.model.types import ExtraJoinToken
from swarmctl import output
from swarmctl.complete import complete_join_tokens
from swarmctl.each import each, exit_with
from swarmctl.options import Parsed, Word, format_option
from swarmctl.parsing.units import parse_count, parse_duration
from swarmctl.parsing.values import parse_pair
from swarmctl.render.rows import JOIN_TOKEN_COLUMNS
from swarmctl.render.times import distance
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

__all__ = ["join_token"]


def _uses(text: str) -> int:
    return parse_count(text, name="the number of uses", maximum=100_000)


@click.group("join-token", short_help="Show, rotate, make and remove join tokens")
@click.option("--rotate", is_flag=True, hidden=True)
@click.option("-q", "--quiet", is_flag=True, hidden=True)
@click.pass_context
def join_token(ctx: click.Context, *, rotate: bool, quiet: bool) -> None:
    """Join tokens: one for workers, one for managers, and those with limits.

    A token lets a node in; whoever has it may join. `create` makes tokens that end by time or
    number of uses and that set labels on the nodes.
    """
    if (rotate or quiet) and ctx.invoked_subcommand not in ("worker", "manager"):
        raise click.UsageError("--rotate and --quiet go with `worker` or `manager`")


def _flag(name: str, *, here: bool) -> bool:
    """Docker's form has the flags before the role as well: `join-token --rotate worker`."""
    parent = click.get_current_context().parent
    return here or bool(parent is not None and parent.params.get(name))


def _show(session: Session, role: NodeRole, *, rotate: bool, quiet: bool) -> None:
    async def work(client: Client) -> None:
        cluster = await client.cluster()
        if rotate:
            cluster = await client.rotate_join_token(cluster, role)
        tokens = cluster.root_ca.join_tokens
        token = tokens.manager if role is NodeRole.MANAGER else tokens.worker
        if quiet:
            click.echo(token)
            return
        if rotate:
            click.echo(f"Successfully rotated {spell(role)} join token.\n")
        await _print_command(client, role, token)

    session.run(work)


async def _print_command(client: Client, role: NodeRole, token: str) -> None:
    node = await client.info()
    address = node.advertise_address or next(iter(node.managers), "HOST:2377")
    click.echo(
        f"To add a {spell(role)} to this swarm, run the following command:\n\n"
        f"    swarmctl join --token {token} {address}\n"
    )


@join_token.command("worker", short_help="Show the token of workers")
@click.option("--rotate", is_flag=True, help="Make a new token; the old one is worthless")
@click.option("-q", "--quiet", is_flag=True, help="Only print the token")
@click.pass_obj
def worker(session: Session, *, rotate: bool, quiet: bool) -> None:
    """Show the token with which nodes join as workers."""
    _show(
        session,
        NodeRole.WORKER,
        rotate=_flag("rotate", here=rotate),
        quiet=_flag("quiet", here=quiet),
    )


@join_token.command("manager", short_help="Show the token of managers")
@click.option("--rotate", is_flag=True, help="Make a new token; the old one is worthless")
@click.option("-q", "--quiet", is_flag=True, help="Only print the token")
@click.pass_obj
def manager(session: Session, *, rotate: bool, quiet: bool) -> None:
    """Show the token with which nodes join as managers."""
    _show(
        session,
        NodeRole.MANAGER,
        rotate=_flag("rotate", here=rotate),
        quiet=_flag("quiet", here=quiet),
    )


@join_token.command("create", short_help="Make a token with limits")
@click.argument("name", default="")
@click.option(
    "--role", type=Word(*NodeRole), default="worker", help="Role of the nodes (default worker)"
)
@click.option(
    "--ttl", type=Parsed("duration", parse_duration), default="0s", help="Its life; 0: no end"
)
@click.option("--uses", type=Parsed("count", _uses), default="0", help="Joins; 0: any number")
@click.option(
    "--label", "labels", type=Parsed("key=value", parse_pair), multiple=True,
    help="Label that the nodes get",
)  # fmt: skip
@click.option("-q", "--quiet", is_flag=True, help="Only print the token")
@click.pass_obj
def create(session: Session, /, name: str, **flags: Any) -> None:
    """Make a join token that ends after a time or a number of joins, or sets labels.

    NAME is for `ls` and `rm`; without it a random one is chosen.
    """

    async def work(client: Client) -> None:
        made = await client.create_join_token(
            ExtraJoinToken(
                name=name, role=flags["role"], uses_left=flags["uses"], labels=dict(flags["labels"])
            ),
            ttl_ns=flags["ttl"],
        )
        if flags["quiet"]:
            click.echo(made.token)
            return
        click.echo(f"Join token {made.name} created.\n")
        await _print_command(client, made.role, made.token)

    session.run(work)


@join_token.command("ls", short_help="List the tokens with limits")
@format_option
@click.option("-q", "--quiet", is_flag=True, help="Only print names")
@click.pass_obj
def list_tokens(session: Session, template: str, *, quiet: bool) -> None:
    """List the join tokens that were made with `create`."""

    async def work(client: Client) -> None:
        tokens = (await client.cluster()).root_ca.join_tokens.extra
        now_ns = SystemClock().now_ns()
        rows = [_row(token, now_ns) for token in sorted(tokens, key=lambda token: token.name)]
        if quiet and not template:
            output.write("".join(f"{token['Name']}\n" for token in rows))
            return
        output.write(
            output.rows_text(rows, columns=JOIN_TOKEN_COLUMNS, template=template, quiet=False)
        )

    session.run(work)


def _row(token: ExtraJoinToken, now_ns: int) -> Record:
    if not token.expires_at_ns:
        expires = "never"
    elif token.expires_at_ns <= now_ns:
        expires = "expired"
    else:
        expires = f"in {distance(token.expires_at_ns - now_ns).lower()}"
    labels = ",".join(f"{key}={value}" for key, value in sorted(token.labels.items()))
    return Record(
        {
            "Name": token.name,
            "Role": spell(token.role),
            "UsesLeft": str(token.uses_left or "any"),
            "Expires": expires,
            "Labels": labels,
            "Token": token.token,
        }
    )


@join_token.command("rm", short_help="Make tokens worthless")
@click.argument(
    "names", nargs=-1, required=True, metavar="NAME...", shell_complete=complete_join_tokens
)
@click.pass_obj
def remove_tokens(session: Session, names: tuple[str, ...]) -> None:
    """Remove join tokens; nodes that have joined stay."""

    async def work(client: Client) -> None:
        async def remove(name: str) -> str:
            await client.remove_join_token(name)
            click.echo(name)
            return name

        _, errors = await each(names, remove)
        exit_with(errors)

    session.run(work)
