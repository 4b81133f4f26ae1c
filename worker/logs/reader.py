"""Reading a container's log files, from any process, while the logger writes them.

Nothing is asked of the logger: files are numbered, the highest is being written, `log.end` says
that no more will come. A follower keeps its place by file number and offset, so it survives
rotation and a restart of the logger; when it is slower than the rotation it goes on with the
oldest file left.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Collection

import msgspec

from shoal.errors import NotFound
from worker.logs.model import LogLine, parse_entry

STREAMS_ALL = frozenset(("stdout", "stderr"))
_CHUNK_BYTES = 256 << 10
_POLL_S = 0.04
_DRAIN_DEADLINE_S = 2.0
_ENTRIES_PER_BATCH = 2000


class _Record(msgspec.Struct):
    state: str


class _Place:
    """Where a reader stands: file number, offset, and the entry it has read half of."""

    def __init__(self, container_dir: str) -> None:
        self.container_dir = container_dir
        self.sequence = 0
        self.offset = 0

    def sequences(self) -> list[int]:
        try:
            names = os.listdir(f"{self.container_dir}/logs")
        except FileNotFoundError:
            return []
        return sorted(int(n[:-5]) for n in names if n.endswith(".json") and n[:-5].isdigit())

    def path(self, sequence: int) -> str:
        return f"{self.container_dir}/logs/{sequence:06d}.json"

    def ended(self) -> bool:
        """True when the logger has written all there will ever be."""
        return not os.path.exists(self.container_dir) or os.path.exists(
            f"{self.container_dir}/log.end"
        )

    def next_entries(self) -> list[LogLine]:
        """The next complete entries, moving on to the next file at the end of one."""
        while True:
            files = self.sequences()
            later = [s for s in files if s > self.sequence]
            entries = self._read()
            if entries or not later:
                return entries
            self.sequence, self.offset = later[0], 0

    def _read(self) -> list[LogLine]:
        try:
            with open(self.path(self.sequence), "rb") as file:
                file.seek(self.offset)
                data = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self.offset += end
        return [entry for line in data[:end].splitlines() if (entry := parse_entry(line))]


async def read(
    container_dir: str,
    *,
    follow: bool = False,
    tail: int | None = None,
    since_ns: int = 0,
    streams: Collection[str] = STREAMS_ALL,
) -> AsyncIterator[LogLine]:
    """Lines of a container, oldest first.

    tail: only the last so many (after the other filters); None is all. since_ns: only lines after
    this time, exclusive, so the time of the last line read is a cursor. follow: go on until the
    container has ended and everything it wrote was given. Raises: NotFound.
    """
    if not await asyncio.to_thread(os.path.isdir, container_dir):
        raise NotFound(f"logs: no container directory {os.path.basename(container_dir)}")
    place = _Place(container_dir)
    await _wait_until_drained(place)
    if tail is not None:
        for line in await asyncio.to_thread(_last, place, tail, since_ns, frozenset(streams)):
            yield line
    while True:
        complete = place.ended()
        entries = await asyncio.to_thread(place.next_entries)
        for line in entries:
            if line.time_ns > since_ns and line.stream in streams:
                yield line
        if entries:
            continue
        if complete or not follow:
            return
        await asyncio.sleep(_POLL_S)


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


def _last(place: _Place, count: int, since_ns: int, streams: frozenset[str]) -> list[LogLine]:
    """The last `count` lines, read from the newest file backwards; leaves `place` after them."""
    found: list[LogLine] = []
    files = place.sequences()
    for sequence in reversed(files):
        part = _Place(place.container_dir)
        part.sequence = sequence
        lines: list[LogLine] = []
        while entries := part._read():
            lines += [e for e in entries if e.time_ns > since_ns and e.stream in streams]
            if len(lines) > 2 * count + _ENTRIES_PER_BATCH:
                lines = lines[len(lines) - count :] if count else []
        if sequence == files[-1]:
            place.sequence, place.offset = part.sequence, part.offset
        found = lines + found
        if len(found) >= count:
            break
    return found[len(found) - count :] if count else []
