"""The progress on the terminal: bars that move in place, or a line per change without one."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import TracebackType
from typing import Protocol, TextIO

from swarmctl.progress.core import STEPS, Line

BAR_WIDTH = 50


class Display(Protocol):
    """Shows the lines of the moment; a context manager that restores the terminal."""

    def __enter__(self) -> Display: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, lines: Iterable[Line]) -> None:
        """Replace what is shown."""
        ...


def make_display(*, quiet: bool, stream: TextIO | None = None) -> Display:
    """The display that fits: none when quiet, bars on a terminal, else plain lines."""
    stream = stream or sys.stdout
    if quiet:
        return NoDisplay()
    return BarDisplay(stream) if stream.isatty() else PlainDisplay(stream)


class NoDisplay:
    """Shows nothing."""

    def __enter__(self) -> NoDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""

    def show(self, lines: Iterable[Line]) -> None:
        """Nothing."""


class PlainDisplay:
    """Prints a line when its text changes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[str, str] = {}

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to restore."""

    def show(self, lines: Iterable[Line]) -> None:
        """Print what changed."""
        for line in lines:
            if self._shown.get(line.key) != line.text:
                self._shown[line.key] = line.text
                self._stream.write(f"{line.key}: {line.text}\n")
        self._stream.flush()


class BarDisplay:
    """Draws all lines in place."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console  # here: only a terminal needs it
        from rich.live import Live
        from rich.text import Text

        self._text = Text
        self._live = Live(console=Console(file=stream, highlight=False), auto_refresh=False)

    def __enter__(self) -> BarDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, lines: Iterable[Line]) -> None:
        """Draw the lines."""
        text = "\n".join(bar_line(line) for line in lines)
        self._live.update(self._text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


def bar_line(line: Line) -> str:
    """A line with its bar, as docker draws it."""
    if line.step is None:
        return f"{line.key}: {line.text}"
    filled = BAR_WIDTH * line.step // STEPS
    bar = "=" * filled if filled == BAR_WIDTH else "=" * max(filled - 1, 0) + ">"
    return f"{line.key}: {line.text:<9} [{bar:<{BAR_WIDTH}}]"
