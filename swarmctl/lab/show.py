"""How labs and their nodes are shown: a table for people, JSON for programs, names for shells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import msgspec

from swarmctl.lab.labs import NodeRow
from swarmctl.lab.record import LabRecord

_Command = Callable[..., Any]


class NodeView(msgspec.Struct, frozen=True, rename="pascal"):
    """A node's fields, as templates and JSON name them."""

    name: str
    role: str
    address: str
    status: str
    socket: str
    docker_socket: str
    pid: int
    metrics: str
    log: str


class LabView(msgspec.Struct, frozen=True, rename="pascal"):
    """A lab's fields, as templates and JSON name them."""

    name: str
    managers: int
    workers: int
    subnet: str
    status: str
    directory: str


def format_options(command: _Command) -> _Command:
    """Adds --format and --quiet."""
    command = click.option("-q", "--quiet", is_flag=True, help="Names only")(command)
    return click.option(
        "--format", "output", default="table", metavar="FORMAT", help="table or json"
    )(command)


def nodes(rows: Sequence[NodeRow], *, output: str, quiet: bool) -> None:
    """Print nodes."""
    views = [NodeView(**msgspec.structs.asdict(row)) for row in rows]
    columns = ("Name", "Role", "Address", "Status", "Socket", "DockerSocket")
    _show(views, columns, output=output, quiet=quiet)


def labs(records: Sequence[LabRecord], *, output: str, quiet: bool) -> None:
    """Print labs."""
    views = [_lab_view(record) for record in records]
    columns = ("Name", "Managers", "Workers", "Subnet", "Status", "Directory")
    _show(views, columns, output=output, quiet=quiet)


def _lab_view(record: LabRecord) -> LabView:
    roles = [node.role for node in record.plan.nodes]
    return LabView(
        name=record.plan.name,
        managers=roles.count("manager"),
        workers=roles.count("worker"),
        subnet=record.plan.subnet,
        status=record.phase,
        directory=record.plan.directory,
    )


def _show(
    views: Sequence[NodeView | LabView], columns: tuple[str, ...], *, output: str, quiet: bool
) -> None:
    fields = [msgspec.to_builtins(view) for view in views]
    if quiet:
        lines = [row["Name"] for row in fields]
    elif output == "json":
        lines = [msgspec.json.encode(row).decode() for row in fields]
    elif output == "table":
        lines = table(columns, [[str(row[column]) for column in columns] for row in fields])
    else:
        raise click.UsageError(f"--format {output!r}: use table or json")
    for line in lines:
        click.echo(line)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with columns as wide as their widest cell, upper-case headings first."""
    heads = [heading(column) for column in columns]
    widths = [max(map(len, cells)) for cells in zip(heads, *rows, strict=True)]
    return [
        "   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [heads, *rows]
    ]


def heading(column: str) -> str:
    """`DockerSocket` as a heading: `DOCKER SOCKET`."""
    spaced = "".join(f" {c}" if c.isupper() and i else c for i, c in enumerate(column))
    return spaced.upper()
