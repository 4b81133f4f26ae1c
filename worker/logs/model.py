"""One line of a container's output as readers get it, and the file format it is kept in. Pure.

A log file holds one JSON object per line: `{"log": text, "stream": "stdout"|"stderr", "time": t}`,
as Docker's json-file driver writes; `log` ends in a newline unless it is a piece of a line longer
than 16 KiB or the program ended without one. Times of one container strictly increase, so a time
is a cursor: "everything after t" resumes without gap or repetition.
"""

from __future__ import annotations

import calendar
import time
from typing import Literal

import msgspec

StreamName = Literal["stdout", "stderr"]


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """`text` as written, newline included; `partial` when the line goes on in the next one."""

    time_ns: int
    stream: StreamName
    text: str

    @property
    def partial(self) -> bool:
        """True for a piece of a long line, or an unfinished last line."""
        return not self.text.endswith("\n")


class _Entry(msgspec.Struct, frozen=True, gc=False):
    log: str
    stream: StreamName
    time: str


_decoder = msgspec.json.Decoder(_Entry)


def parse_entry(line: bytes) -> LogLine | None:
    """One line of a log file; None when it is damaged (a full disk may cut one)."""
    try:
        entry = _decoder.decode(line)
        return LogLine(parse_time(entry.time), entry.stream, entry.log)
    except (msgspec.DecodeError, ValueError):
        return None


def parse_time(text: str) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time in UTC. Raises: ValueError."""
    whole, _, fraction = text.rstrip("Z").partition(".")
    seconds = calendar.timegm(time.strptime(whole, "%Y-%m-%dT%H:%M:%S"))
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0")[:9] or "0")
