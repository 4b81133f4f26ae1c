"""Columns of text, aligned as docker's tables: three blanks apart, ten characters at least."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

CELL_MIN = 10
PADDING = 3
ELLIPSIS = "…"


def align(lines: Iterable[str]) -> str:
    """Lines whose cells are separated by tabs; the last cell of a line is not padded."""
    rows = [line.split("\t") for line in lines]
    widths: list[int] = []
    for row in rows:
        for column, cell in enumerate(row[:-1]):
            if column == len(widths):
                widths.append(CELL_MIN)
            widths[column] = max(widths[column], display_width(cell) + PADDING)
    return "".join(_row(row, widths) + "\n" for row in rows)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with a line of headers."""
    return align("\t".join(row) for row in [headers, *rows])


def ellipsis(text: str, width: int) -> str:
    """The text cut to `width` characters, with an ellipsis as the last when it was cut."""
    return text if len(text) <= width else text[: width - 1] + ELLIPSIS


def display_width(text: str) -> int:
    """Columns of a terminal the text takes."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def one_line(text: str) -> str:
    """The text without characters that would break a table or act on the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _row(row: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        cell + " " * (width - display_width(cell))
        for cell, width in zip(row[:-1], widths, strict=False)
    ]
    return "".join([*padded, row[-1]])
