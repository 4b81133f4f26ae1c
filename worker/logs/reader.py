"""Reading a container's log files, from any process, while the logger writes them.

Nothing is asked of the logger: files are numbered, the highest is being written, `log.end` says
that no more will come. A follower keeps its place by file number and offset, so it survives
rotation and a restart of the logger; when it is slower than the rotation it goes on with the
oldest file left.
"""

from __future__ import annotations

import asyncio
import gzip
import os
import time
import zlib
from collections.abc import AsyncIterator, Collection
from typing import NamedTuple

import msgspec

from shoal.errors import NotFound
from worker.logs import files
from worker.logs.model import LogLine, parse_entry

STREAMS_ALL = frozenset(("stdout", "stderr"))
_CHUNK_BYTES = 256 << 10
_POLL_S = 0.04
_DRAIN_DEADLINE_S = 2.0
_ENTRIES_PER_BATCH = 2000


class _Record(msgspec.Struct):
    state: str


class _Place:
    """Where a reader stands: file number, offset, and the entry it has read half of.

    An old file may become compressed under us; offsets are those of its content.
    """

    def __init__(self, container_dir: str) -> None:
        self.container_dir = container_dir
        self.sequence = 0
        self.offset = 0
        self._packed: gzip.GzipFile | None = None  # of `sequence`: it cannot be sought cheaply

    def sequences(self) -> list[int]:
        try:
            return files.sequences(self.container_dir)
        except FileNotFoundError:
            return []

    def move(self, sequence: int) -> None:
        """Go to the beginning of a file."""
        self.close()
        self.sequence, self.offset = sequence, 0

    def close(self) -> None:
        """Let go of the file."""
        if self._packed is not None:
            self._packed.close()
            self._packed = None

    def ended(self) -> bool:
        """True when the logger has written all there will ever be."""
        return not os.path.exists(self.container_dir) or os.path.exists(
            f"{self.container_dir}/log.end"
        )

    def next_entries(self) -> list[LogLine]:
        """The next complete entries, moving on to the next file at the end of one."""
        while True:
            later = [s for s in self.sequences() if s > self.sequence]
            entries = self.read()
            if entries or not later:
                return entries
            self.move(later[0])

    def read(self) -> list[LogLine]:
        """The next complete entries of this file."""
        data = self._read_plain()
        if data is None:
            data = self._read_packed()
        end = data.rfind(b"\n") + 1
        self.offset += end
        return [entry for line in data[:end].splitlines() if (entry := parse_entry(line))]

    def _read_plain(self) -> bytes | None:
        try:
            with open(files.path_of(self.container_dir, self.sequence), "rb") as file:
                file.seek(self.offset)
                return file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return None

    def _read_packed(self) -> bytes:
        path = files.path_of(self.container_dir, self.sequence, files.COMPRESSED)
        try:
            if self._packed is None:
                self._packed = gzip.open(path)  # noqa: SIM115 - closed by `close`
            self._packed.seek(self.offset)
            return self._packed.read(_CHUNK_BYTES)
        except (OSError, EOFError, zlib.error):  # removed meanwhile, or damaged: it ends here
            return b""


async def read(
    container_dir: str,
    *,
    follow: bool = False,
    tail: int | None = None,
    since_ns: int = 0,
    until_ns: int = 0,
    streams: Collection[str] = STREAMS_ALL,
) -> AsyncIterator[LogLine]:
    """Lines of a container, oldest first.

    tail: only the last so many (after the other filters); None is all. since_ns: only lines after
    this time, exclusive, so the time of the last line read is a cursor. until_ns: none later, and
    nobody follows longer. follow: go on until the container has ended and everything it wrote was
    given. Raises: NotFound.
    """
    if not await asyncio.to_thread(os.path.isdir, container_dir):
        raise NotFound(f"logs: no container directory {os.path.basename(container_dir)}")
    place = _Place(container_dir)
    wished = _Wished(since_ns, until_ns, frozenset(streams))
    if not wished.is_over(time.time_ns()):  # else what is still on its way is not wished
        await _wait_until_drained(place)
    try:
        if tail is not None:
            for line in await asyncio.to_thread(_last, place, tail, wished):
                yield line
            if not follow:
                return  # what has been written meanwhile would make them more than the last so many
        while True:
            complete = place.ended() or wished.is_over(time.time_ns())
            entries = await asyncio.to_thread(place.next_entries)
            for line in entries:
                if wished(line):
                    yield line
            if entries and not wished.is_over(entries[-1].time_ns):
                continue
            if complete or not follow or entries:
                return
            await asyncio.sleep(_POLL_S)
    finally:
        place.close()


class _Wished(NamedTuple):
    since_ns: int
    until_ns: int
    streams: frozenset[str]

    def __call__(self, line: LogLine) -> bool:
        return (
            line.time_ns > self.since_ns
            and not self.is_over(line.time_ns)
            and line.stream in self.streams
        )

    def is_over(self, time_ns: int) -> bool:
        """Whether nothing of this time or later is wished."""
        return 0 < self.until_ns < time_ns


async def _wait_until_drained(place: _Place) -> None:
    """An ended container's last bytes may still be on their way through the logger."""
    try:
        async with asyncio.timeout(_DRAIN_DEADLINE_S):
            while not place.ended() and _state(place.container_dir) == "exited":  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S / 4)
    except TimeoutError:
        return


def _state(container_dir: str) -> str:
    try:
        with open(f"{container_dir}/state.json", "rb") as file:
            return msgspec.json.decode(file.read(), type=_Record).state
    except (OSError, msgspec.DecodeError):
        return ""


def _last(place: _Place, count: int, wished: _Wished) -> list[LogLine]:
    """The last `count` lines, read from the newest file backwards; leaves `place` after them."""
    found: list[LogLine] = []
    numbers = place.sequences()
    for sequence in reversed(numbers):
        part = _Place(place.container_dir)
        part.move(sequence)
        lines: list[LogLine] = []
        while entries := part.read():
            lines += [entry for entry in entries if wished(entry)]
            if len(lines) > 2 * count + _ENTRIES_PER_BATCH:
                lines = lines[len(lines) - count :] if count else []
        part.close()
        if sequence == numbers[-1]:
            place.sequence, place.offset = part.sequence, part.offset
        found = lines + found
        if len(found) >= count:
            break
    return found[len(found) - count :] if count else []
