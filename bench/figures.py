"""One figure of a measurement, its bar, and where it is written down.

Every program of this folder ends with figures: printed for whoever ran it, and appended as JSON
lines to the file named by SHOAL_BENCH_FIGURES, from which `python -m bench` makes its table.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

FILE_VARIABLE = "SHOAL_BENCH_FIGURES"

Sense = Literal["at most", "at least", ""]


class Figure(msgspec.Struct, frozen=True):
    """A number and the bar it is held to; sense "" means: for information, without a bar."""

    what: str
    value: float
    unit: str = ""
    bar: float = 0.0
    sense: Sense = ""

    @property
    def verdict(self) -> str:
        """Word for the table."""
        match self.sense:
            case "at most":
                return "met" if self.value <= self.bar else "MISSED"
            case "at least":
                return "met" if self.value >= self.bar else "MISSED"
            case "":
                return ""

    def row(self) -> tuple[str, str, str, str]:
        """What, value, bar, verdict."""
        bar = f"{self.sense} {_short(self.bar)} {self.unit}".strip() if self.sense else ""
        return self.what, f"{_short(self.value)} {self.unit}".strip(), bar, self.verdict


def report(*figures: Figure) -> None:
    """Print the figures and write them down."""
    print(table(figures), flush=True)
    path = os.environ.get(FILE_VARIABLE)
    if path:
        with Path(path).open("ab") as file:
            file.writelines(msgspec.json.encode(figure) + b"\n" for figure in figures)


def read(path: Path) -> list[Figure]:
    """The figures written to `path`; none when nothing was."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Figure) for line in lines]


def table(figures: Sequence[Figure]) -> str:
    """Aligned lines, one a figure."""
    rows = [figure.row() for figure in figures]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    return "\n".join(
        f"  {row[0]:{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    )


def spread(name: str, values: Sequence[float], unit: str) -> str:
    """One line about a sample: how many, the least, the middle, nine tenths, the most."""
    ordered = sorted(values)
    p90 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.9))]
    return (
        f"  {name:16} n={len(ordered):<3} min {_short(ordered[0])}  "
        f"median {_short(statistics.median(ordered))}  p90 {_short(p90)}  "
        f"max {_short(ordered[-1])} {unit}"
    )


def _short(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.3g}"
