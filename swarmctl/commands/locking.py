"""unlock, unlock-key: managers that need a key after a restart."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from shoal.errors import DeadlineExceeded, FailedPrecondition, SwarmError, Unavailable
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

__all__ = ["print_unlock_command", "unlock", "unlock_key", "with_new_key"]

_LINE_CHARACTERS_MAX = 4096


@click.command("unlock", short_help="Unlock this node's manager")
@click.pass_obj
def unlock(session: Session) -> None:
    """Unlock this node's manager after a restart.

    The key is asked for without showing it, or read as one line from standard input if that is no
    terminal. `swarmctl unlock-key` on another manager prints it.
    """
    target = session.target()

    async def look(client: Client) -> str:
        return (await client.info()).state

    state = session.run(look, target=target)
    if state == "inactive":
        raise FailedPrecondition("This node is not part of a cluster: there is nothing to unlock")
    if state == "active":
        raise FailedPrecondition("swarm is not locked")
    key = _read_key()

    async def work(client: Client) -> None:
        await client.unlock(key)

    session.run(work, target=target)


@click.command("unlock-key", short_help="Show or rotate the key that unlocks managers")
@click.option("--rotate", is_flag=True, help="Make a new key; the old one opens nothing any more")
@click.option("-q", "--quiet", is_flag=True, help="Only print the key")
@click.pass_obj
def unlock_key(session: Session, *, rotate: bool, quiet: bool) -> None:
    """Show the key with which managers are unlocked after a restart.

    A manager that is down while the key is rotated is unlocked with the old one, and then learns
    the new one.
    """

    async def work(client: Client) -> None:
        if rotate:
            key = await with_new_key(client.rotate_unlock_key)
            if not quiet:
                click.echo("Successfully rotated manager unlock key.\n")
        else:
            key = await client.unlock_key()
        if not key:
            raise FailedPrecondition(
                "no unlock key is set: `swarmctl cluster update --autolock` makes one"
            )
        if quiet:
            click.echo(key)
        else:
            print_unlock_command(key)

    session.run(work)


async def with_new_key(change: Callable[[str], Awaitable[object]]) -> str:
    """Change the cluster's lock with an unlock key made here; the key.

    It is made here so that it is known whatever happens to the answer: managers may lock
    themselves at once.
    """
    from shoal.security.unlock import make_unlock_key  # here: help must not load cryptography

    key = make_unlock_key().render()
    try:
        await change(key)
    except (Unavailable, DeadlineExceeded) as error:
        raise _with_key(error, key) from error
    return key


def _with_key(error: SwarmError, key: str) -> SwarmError:
    return type(error)(
        f"{error.message}\nIt is not known whether the change was made. If it was, the managers' "
        f"unlock key is\n\n    {key}\n"
    )


def print_unlock_command(key: str) -> None:
    """What to keep, and why."""
    click.echo(
        "To unlock a swarm manager after it restarts, run the `swarmctl unlock`\n"
        f"command and provide the following key:\n\n    {key}\n\n"
        "Remember to store this key in a password manager, since without it you\n"
        "will not be able to restart the manager."
    )


def _read_key() -> str:
    if sys.stdin.isatty():
        key: str = click.prompt("Enter unlock key", hide_input=True)
        return key
    return sys.stdin.readline(_LINE_CHARACTERS_MAX).strip()
