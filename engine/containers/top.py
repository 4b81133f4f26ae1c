"""`docker top`: the processes of a container as the node's own `ps` shows them. Pure but for `run`.

`ps` is asked for the container's processes alone; where its options do not go together with that,
for all, and the others are left out. Source: moby daemon/top_unix.go, whose words these are.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress

from shoal.errors import DeadlineExceeded, InvalidArgument, SwarmError, Unimplemented
from shoal.model.row import Row

DEFAULT_ARGS = "-ef"
DEADLINE_S = 20.0
_RENAMED = re.compile(r"\s+(\w*)=\s*(PID\S*)", re.ASCII)


class Processes(Row, frozen=True):
    """A table: titles, and a row for each process."""

    titles: list[str]
    rows: list[list[str]]


def check_args(args: str) -> None:
    """Another column must not be named PID. Raises: InvalidArgument."""
    for name, title in _RENAMED.findall(f" {args}"):
        if name != "pid":
            raise InvalidArgument(f'specifying "{name}={title}" is not allowed')


def parse(output: str, pids: Sequence[int]) -> Processes:
    """The rows of these processes, and of their threads. Raises: SwarmError."""
    lines = output.split("\n")
    titles = lines[0].split()
    if "PID" not in titles:
        raise SwarmError("Couldn't find PID field in ps output")
    column = titles.index("PID")
    wanted, rows, is_wanted = set(pids), [], False
    for line in lines[1:]:
        fields = line.split()
        if not fields:
            continue
        if len(fields) <= column:
            raise SwarmError(f"unexpected line of ps: {line!r}")
        if fields[column] != "-":  # a thread of the process before
            is_wanted = _pid(fields[column]) in wanted
        if is_wanted:
            last = len(titles) - 1
            rows.append([*fields[:last], " ".join(fields[last:])])
    return Processes(titles, rows)


async def run(args: str, pids: Sequence[int]) -> Processes:
    """Ask `ps`. Raises: InvalidArgument, Unimplemented when the node has none, SwarmError."""
    check_args(args)
    words = (args or DEFAULT_ARGS).split()
    listed = ",".join(map(str, pids))
    code, output, _ = await _ps(*words, f"-q{listed}")
    if code != 0:
        code, output, complaint = await _ps(*words)
        if code != 0:
            raise SwarmError(f"ps: {complaint.strip().partition(chr(10))[0]}")
    return parse(output, pids)


async def _ps(*words: str) -> tuple[int, str, str]:
    try:
        process = await asyncio.create_subprocess_exec(
            "ps", *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise Unimplemented("top: this node has no ps: install procps") from None
    try:
        async with asyncio.timeout(DEADLINE_S):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise DeadlineExceeded(f"ps: no answer after {DEADLINE_S:.0f} s") from None
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):  # it ends at this very moment
                process.kill()
            await process.wait()
    return process.returncode or 0, output.decode(errors="replace"), complaint.decode()


def _pid(text: str) -> int:
    if not text.isdecimal():
        raise SwarmError(f"unexpected pid '{text}'")
    return int(text)
