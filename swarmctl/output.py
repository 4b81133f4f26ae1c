"""Lists and objects on stdout in the format the user asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click

from shoal.docker.values import Record
from swarmctl import gotemplate
from swarmctl.render.rows import OTHER_HEADERS, Columns
from swarmctl.render.tables import align

TABLE = "table"


def rows_text(
    rows: Sequence[Record],
    *,
    columns: Columns,
    template: str = "",
    quiet: bool = False,
) -> str:
    """A list as a table, as JSON objects, or through a template; `quiet`: the ids alone."""
    if quiet and not template:
        return "".join(f"{row[next(iter(columns))]}\n" for row in rows)
    if template == "json":
        return "".join(_json_line(dict(sorted(row.items()))) for row in rows)
    if template in ("", TABLE):
        lines = ["\t".join(columns.values())]
        lines += ["\t".join(_cell(row, name) for name in columns) for row in rows]
        return align(lines)
    with_header = template.startswith(f"{TABLE} ")
    tree = gotemplate.parse(_unescaped(template.removeprefix(f"{TABLE} ")))
    lines = [gotemplate.render(tree, row) for row in rows]
    if not with_header:
        return "".join(f"{line}\n" for line in lines)
    return align([gotemplate.render(tree, Record({**OTHER_HEADERS, **columns})), *lines])


def objects_text(objects: Sequence[Any], template: str = "") -> str:
    """What `inspect` prints: an indented JSON array, JSON lines, or a template for each."""
    if not template:
        return json.dumps(objects, indent=4, ensure_ascii=False) + "\n"
    if template == "json":
        return "".join(_json_line(item) for item in objects)
    tree = gotemplate.parse(_unescaped(template))
    return "".join(f"{gotemplate.render(tree, item)}\n" for item in objects)


def write(text: str) -> None:
    """Print as it is."""
    click.echo(text, nl=False)


def warn(messages: Iterable[str]) -> None:
    """Print warnings on stderr."""
    for message in messages:
        click.echo(f"Warning: {message}", err=True)


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = str(row[name])
    if name == "ID" and "Self" in row:
        return f"{value} *" if row["Self"] else f"{value}"
    return value


def _json_line(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False) + "\n"


def _unescaped(template: str) -> str:
    """As docker: backslash-t and backslash-n outside of any quoting mean tab and newline."""
    return template.replace("\\t", "\t").replace("\\n", "\n")
