"""image import, load, ls, inspect, rm.

What writes acts on every node the context lists, one after the other, a line per node; a node
that fails does not stop the others. What reads asks one node.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import click

from shoal.clock import SystemClock
from shoal.errors import InvalidArgument, SwarmError
from swarmctl import output
from swarmctl.each import each, exit_with
from swarmctl.options import (
    format_option,
    inspect_format_option,
    no_trunc_option,
    node_option,
    quiet_option,
)
from swarmctl.render.images import image_json
from swarmctl.render.rows import IMAGE_COLUMNS, image_rows
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

CHUNK_BYTES = 1024 * 1024
STDIN = "-"


@click.group()
def image() -> None:
    """Images of a node, or of all nodes of the context."""


@image.command("import")
@click.argument("file", metavar="FILE|-")
@click.argument("reference", metavar="NAME[:TAG]")
@click.option(
    "-c",
    "--change",
    "changes",
    multiple=True,
    metavar="INSTRUCTION",
    help="Dockerfile instruction, as 'CMD [\"sh\"]'",
)
@node_option
@click.pass_obj
def import_image(
    session: Session,
    file: str,
    reference: str,
    changes: tuple[str, ...],
    *,
    node_name: str | None,
) -> None:
    """Make an image of an archive of a root file system."""

    async def work(client: Client) -> list[str]:
        with _opened(file) as archive:
            made = await client.import_image(reference, changes, _chunks(archive))
        return [made.id]

    _on_nodes(session, node_name, work, source=file)


@image.command("load")
@click.option(
    "-i", "--input", "file", default=STDIN, metavar="FILE", help="Archive (default: standard input)"
)
@node_option
@click.pass_obj
def load_images(session: Session, file: str, *, node_name: str | None) -> None:
    """Take in the images of an archive that `docker save` or a build made."""

    async def work(client: Client) -> list[str]:
        with _opened(file) as archive:
            names = await client.load_images(_chunks(archive))
        return [f"Loaded image: {name}" for name in names]

    _on_nodes(session, node_name, work, source=file)


@image.command("rm")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@click.option("-f", "--force", is_flag=True, help="Remove it although containers use it")
@node_option
@click.pass_obj
def remove_images(
    session: Session, names: tuple[str, ...], *, force: bool, node_name: str | None
) -> None:
    """Remove names of images, and images without a name left."""

    async def work(client: Client) -> list[str]:
        removed, errors = await each(names, lambda name: client.remove_image(name, force=force))
        lines = [f"Untagged: {name}" for item in removed for name in item.untagged]
        lines += [f"Deleted: {name}" for item in removed for name in item.deleted]
        if errors:
            raise _Partly(lines, errors)
        return lines

    _on_nodes(session, node_name, work)


@image.command("ls")
@format_option
@quiet_option
@no_trunc_option
@node_option
@click.pass_obj
def list_images(
    session: Session, template: str, *, quiet: bool, no_trunc: bool, node_name: str | None
) -> None:
    """List the images of one node: the context's host, or --node."""

    async def work(client: Client) -> None:
        now_ns = SystemClock().now_ns()
        images = sorted(await client.images(), key=lambda item: -item.created_at_ns)
        rows = [
            row for item in images for row in image_rows(item, now_ns=now_ns, trunc=not no_trunc)
        ]
        if quiet and not template:
            output.write("".join(f"{name}\n" for name in dict.fromkeys(row["ID"] for row in rows)))
            return
        output.write(output.rows_text(rows, columns=IMAGE_COLUMNS, template=template))

    session.run(work, target=session.target(node_name))


@image.command("inspect")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...")
@inspect_format_option
@node_option
@click.pass_obj
def inspect_images(
    session: Session, names: tuple[str, ...], template: str, *, node_name: str | None
) -> None:
    """Show everything about images of one node."""

    async def work(client: Client) -> None:
        images, errors = await each(names, client.image)
        output.write(output.objects_text([image_json(item) for item in images], template))
        exit_with(errors)

    session.run(work, target=session.target(node_name))


class _Partly(Exception):
    def __init__(self, lines: list[str], errors: list[SwarmError]) -> None:
        super().__init__()
        self.lines = lines
        self.errors = errors


def _on_nodes(
    session: Session,
    node_name: str | None,
    work: Callable[[Client], Awaitable[list[str]]],
    *,
    source: str = "",
) -> None:
    """Run `work` on each node and print its lines; errors at the end, with the node's name."""
    targets = session.targets(node_name)
    if source == STDIN and len(targets) > 1:
        raise InvalidArgument(
            "standard input can be read once, but the context has several nodes: "
            "give a file, or one node with --node"
        )
    failures: list[SwarmError] = []
    for name, target in targets.items():
        prefix = f"{name}: " if name else ""
        try:
            lines, errors = session.run(work, target=target), []
        except _Partly as partly:
            lines, errors = partly.lines, partly.errors
        except SwarmError as error:
            lines, errors = [], [error]
        for line in lines:
            click.echo(f"{prefix}{line}")
        failures += [type(error)(f"{prefix}{error.message}") for error in errors]
    exit_with(failures)


@contextlib.contextmanager
def _opened(file: str) -> Iterator[BinaryIO]:
    if file == STDIN:
        yield sys.stdin.buffer
        return
    try:
        archive = open(file, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InvalidArgument(f"{file}: {error.strerror}") from error
    with archive:
        yield archive


async def _chunks(archive: BinaryIO) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(archive.read, CHUNK_BYTES):
        yield chunk
