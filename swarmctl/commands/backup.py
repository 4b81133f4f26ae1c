"""cluster backup, restore: everything the cluster stores, in one file, and a cluster made of it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.enums import NodeAvailability
from swarmctl.options import Word
from swarmctl.parsing.external import read_pem
from swarmctl.parsing.units import format_binary_size
from swarmctl.private_file import private_file
from swarmctl.session import Session
from swarmctl.types import BackupPart, RestoredCluster, RestoreOptions

if TYPE_CHECKING:
    from shoal.security.passphrase import Sealer
    from swarmctl.client import Client

__all__ = ["backup", "restore"]

STREAM = "-"
CHUNK_BYTES = 1 << 20
PASSPHRASE_BYTES_MAX = 4096
WARNING = (
    "It holds the key of the cluster's root certificate, its join tokens and all secrets: whoever"
    " has it has the cluster."
)
HOW_TO_GIVE = "give --passphrase-file, or run it on a terminal"

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Passphrase of the backup: the file's first line",
)


@click.command(short_help="Write all that the cluster stores into a file")
@click.argument("file", metavar="FILE|-")
@click.option("--encrypt", is_flag=True, help="Encrypt it with a passphrase, which is asked for")
@passphrase_option
@click.option("-f", "--force", is_flag=True, help="Overwrite FILE if it exists")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress")
@click.pass_obj
def backup(
    session: Session,
    file: str,
    passphrase_file: Path | None,
    *,
    encrypt: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Write all that the cluster stores into a file, or to standard output (`-`).

    It holds the key of the root certificate, join tokens and secrets. The file is made for its
    owner alone (0600), and only when the whole backup has arrived and was verified.
    """
    if file == STREAM and sys.stdout.isatty():
        raise click.UsageError("a backup is no text: redirect standard output, or name a file")
    passphrase = ""
    if encrypt or passphrase_file is not None:
        passphrase = _passphrase(passphrase_file, confirm=True)
    with _output(file, replace=force) as out:

        async def work(client: Client) -> BackupPart:
            return await _save(client, out, _sealer(passphrase), _Count(quiet=quiet))

        last = session.run(work)
    if quiet:
        return
    click.echo(
        f"Cluster {last.cluster_id} saved at version {last.version}: {last.objects} objects."
        + ("" if passphrase else f" {WARNING}"),
        err=file == STREAM,
    )


@click.command(short_help="Make this node the first manager of a cluster in a backup")
@click.argument("file", metavar="FILE|-")
@passphrase_option
@click.option(
    "--ca-key",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="PEM of the root's key, where an external CA has it: used once, kept nowhere",
)
@click.option(
    "--advertise-addr",
    default="",
    metavar="ADDR",
    help="Address other nodes dial: IP[:PORT] or INTERFACE[:PORT]",
)
@click.option(
    "--listen-addr", default="", metavar="ADDR", help="Address to listen at (default 0.0.0.0:2377)"
)
@click.option(
    "--availability",
    type=Word(*NodeAvailability),
    default="active",
    help="Availability of this node (default active)",
)
@click.option(
    "--data-path-addr",
    default="",
    metavar="ADDR",
    help="Address or interface of the containers' traffic",
)
@click.pass_obj
def restore(session: Session, /, file: str, passphrase_file: Path | None, **flags: Any) -> None:
    """Make this node, which must be in no cluster, the only manager of a cluster in a backup.

    The cluster has the same id, root certificate, tokens, services, secrets and nodes. Its old
    managers must not run any more. Where an external CA holds the root's key, the backup has none:
    give it with --ca-key.
    """
    from shoal.security.passphrase import MAGIC, is_sealed  # here: it loads cryptography

    options = RestoreOptions(
        advertise_address=flags["advertise_addr"],
        listen_address=flags["listen_addr"],
        availability=flags["availability"],
        data_path_address=flags["data_path_addr"],
        ca_key=b"" if flags["ca_key"] is None else read_pem(flags["ca_key"]),
    )
    with _input(file) as source:
        head = source.read(len(MAGIC))
        passphrase = ""
        if is_sealed(head):
            passphrase = _passphrase(passphrase_file, confirm=False)
        elif passphrase_file is not None:
            raise InvalidArgument(f"--passphrase-file: {file} is not encrypted")

        async def work(client: Client) -> RestoredCluster:
            from swarmctl import backups  # here: help must not load gRPC

            return await backups.restore(client, options, _plain(head, source, passphrase))

        restored = session.run(work, target=session.target())
    click.echo(_restored_text(restored))


def _restored_text(restored: RestoredCluster) -> str:
    moment = datetime.fromtimestamp(restored.created_at_ns // 10**9, UTC)
    text = (
        f"Cluster {restored.cluster_id} restored as of {moment:%Y-%m-%d %H:%M:%S} UTC"
        f" ({restored.objects} objects): current node ({restored.node_id}) is now its only manager."
    )
    if restored.autolock:
        text += (
            "\n\nIts managers are locked: after a restart this one needs `swarmctl unlock` with the"
            " key that `swarmctl unlock-key` shows now."
        )
    if not restored.known_nodes:
        return text
    return (
        f"{text}\n\nNodes of the backup ({restored.known_nodes}) that know a manager at"
        f" {restored.advertise_address} come back by themselves; the others are down after half a"
        " minute. Let those leave (`swarmctl leave --force`) and join again (`swarmctl"
        " join-token`), and remove the lost ones. Managers of before must not run beside this"
        " cluster."
    )


async def _save(client: Client, out: BinaryIO, sealer: Sealer | None, count: _Count) -> BackupPart:
    """Write the whole backup; its last part."""
    from swarmctl import backups  # here: help must not load gRPC

    last: BackupPart | None = None
    if sealer is not None:
        await asyncio.to_thread(out.write, sealer.header)
    async for part in backups.backup(client):
        data = part.chunk if sealer is None else sealer.add(part.chunk)
        await asyncio.to_thread(out.write, data)
        count.show(part)
        last = part
    if sealer is not None:
        await asyncio.to_thread(out.write, sealer.finish())
    await asyncio.to_thread(out.flush)
    count.end()
    if last is None:
        raise FailedPrecondition("the backup is empty: try again")
    return last


async def _plain(head: bytes, source: BinaryIO, passphrase: str) -> AsyncIterator[bytes]:
    """The backup's own bytes, decrypted if there is a passphrase."""
    from shoal.security.passphrase import Opener  # here: it loads cryptography

    opener = Opener(passphrase) if passphrase else None
    chunk = head
    while chunk:
        yield chunk if opener is None else await asyncio.to_thread(opener.add, chunk)
        chunk = await asyncio.to_thread(source.read, CHUNK_BYTES)
    if opener is not None:
        yield opener.finish()


def _sealer(passphrase: str) -> Sealer | None:
    from shoal.security.passphrase import Sealer  # here: it loads cryptography

    return Sealer(passphrase) if passphrase else None


def _passphrase(path: Path | None, *, confirm: bool) -> str:
    """From the file's first line, or asked for. Raises: InvalidArgument."""
    from shoal.security.passphrase import check_passphrase  # here: it loads cryptography

    if path is not None:
        try:
            with path.open("rb") as file:
                line = file.read(PASSPHRASE_BYTES_MAX).split(b"\n", 1)[0].rstrip(b"\r")
            passphrase = line.decode()
        except OSError as error:
            raise InvalidArgument(f"--passphrase-file: {path}: {error.strerror}") from error
        except UnicodeDecodeError:
            raise InvalidArgument(f"--passphrase-file: {path}: not UTF-8 text") from None
    elif not sys.stdin.isatty():
        raise InvalidArgument(f"the backup needs a passphrase: {HOW_TO_GIVE}")
    else:
        passphrase = click.prompt(
            "Passphrase", hide_input=True, confirmation_prompt=confirm, err=True
        )
    check_passphrase(passphrase)
    return passphrase


@contextmanager
def _output(file: str, *, replace: bool) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield sys.stdout.buffer
        return
    with private_file(Path(file), replace=replace) as made:
        yield made


@contextmanager
def _input(file: str) -> Iterator[BinaryIO]:
    if file == STREAM:
        yield sys.stdin.buffer
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InvalidArgument(f"{file}: {error.strerror}") from error
    with opened:
        yield opened


class _Count:
    """How far the backup is: one line on a terminal, nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._is_shown = not quiet and sys.stderr.isatty()
        self._size_bytes = 0

    def show(self, part: BackupPart) -> None:
        """Say how far it is."""
        self._size_bytes += len(part.chunk)
        if self._is_shown:
            size = format_binary_size(self._size_bytes)
            text = f"\r{part.objects} of {part.total} objects, {size}\x1b[K"
            click.echo(text, nl=False, err=True)

    def end(self) -> None:
        """Leave the line."""
        if self._is_shown:
            click.echo(err=True)
