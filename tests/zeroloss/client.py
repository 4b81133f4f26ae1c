"""A client that counts: `python -m tests.zeroloss.client ADDRESS PORT`, until SIGTERM.

Every request carries a number that its answer must repeat. Nothing is tried again: a request that
is refused, cut off, answered wrongly or not in time has failed, and is written down with the task
that its connection led to. Prints one JSON object at its end. Keeps at most 10,000 failures.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import signal
import socket
import sys
import time
from collections.abc import Iterator

import msgspec

REQUEST_TIMEOUT_S = 20.0
"""Longer than three repetitions of a SYN: a connection may take that long where a node has died."""
FAILURES_KEPT = 10_000
_ANSWER_MAX = 65_536


class Failure(msgspec.Struct, frozen=True):
    """A request that failed. Times are seconds of the monotonic clock, which is the machine's."""

    kind: str
    at_s: float
    connected_s: float | None
    """When its connection was there; None: it never was."""
    task: str
    """Host name of the container that answered on this connection before; "" if none has."""


class Count(msgspec.Struct):
    """What one client has seen."""

    answered: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    failures: list[Failure] = []
    tasks: dict[str, int] = {}


class BadAnswer(Exception):
    """Not the answer to what was asked."""


class Connection:
    """One connection to the service, and what is known of its other end."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._socket: socket.socket | None = None
        self.connected_s: float | None = None
        self.task = ""

    async def ask(self, number: int, *, keep: bool) -> str:
        """Ask once. Result: who answered. Raises: OSError, EOFError, BadAnswer."""
        loop = asyncio.get_running_loop()
        if self._socket is None:
            self._socket = socket.socket()
            self._socket.setblocking(False)
            await loop.sock_connect(self._socket, self._address)
            self.connected_s = time.monotonic()
        closing = "" if keep else "Connection: close\r\n"
        request = f"GET /{number} HTTP/1.1\r\nHost: test\r\n{closing}\r\n"
        await loop.sock_sendall(self._socket, request.encode())
        head, body = await self._answer(self._socket)
        words = body.split()
        if not head.startswith("HTTP/1.1 200 ") or len(words) != 2 or words[0] != f"/{number}":
            raise BadAnswer(f"{head.splitlines()[0]}: {body[:100]}")
        if "connection: close" in head.lower():
            self.close()
        else:
            self.task = words[1]
        return words[1]

    def close(self) -> None:
        """Idempotent."""
        if self._socket is not None:
            self._socket.close()
        self._socket, self.connected_s, self.task = None, None, ""

    async def _answer(self, source: socket.socket) -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < _ANSWER_MAX:
            chunk = await loop.sock_recv(source, 4096)
            if not chunk:
                raise EOFError
            data += chunk
            head, end, body = data.partition(b"\r\n\r\n")
            if end and len(body) >= _body_size(head):
                return head.decode(), body.decode()
        raise BadAnswer("too long")


class Wish(msgspec.Struct, frozen=True):
    """Whom all users of a client ask, how often, and until when."""

    address: tuple[str, int]
    pause_s: float
    stop: asyncio.Event


async def user(wish: Wish, numbers: Iterator[int], count: Count, *, keep: bool) -> None:
    """Ask, one request at a time, and hear the last answer before the end."""
    connection = Connection(wish.address)
    try:
        while not wish.stop.is_set():
            began_s = time.monotonic()
            try:
                async with asyncio.timeout(REQUEST_TIMEOUT_S):
                    task = await connection.ask(next(numbers), keep=keep)
            except (OSError, EOFError, BadAnswer) as error:  # TimeoutError is an OSError
                _note(count, connection, error)
                connection.close()
            else:
                count.answered += 1
                count.tasks[task] = count.tasks.get(task, 0) + 1
            count.slowest_s = max(count.slowest_s, time.monotonic() - began_s)
            await asyncio.sleep(wish.pause_s)
    finally:
        connection.close()


async def run(address: tuple[str, int], *, users: int, pause_s: float) -> Count:
    """So many users that keep their connections, and as many that ask once in each."""
    count, numbers = Count(failures=[], tasks={}), itertools.count(1)
    wish = Wish(address, pause_s, asyncio.Event())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, wish.stop.set)
    async with asyncio.TaskGroup() as group:
        for keep in (True, False) * users:
            group.create_task(user(wish, numbers, count, keep=keep))
        sys.stdout.write("ready\n")
        sys.stdout.flush()
    return count


def _note(count: Count, connection: Connection, error: Exception) -> None:
    count.failed += 1
    if len(count.failures) < FAILURES_KEPT:
        kind = f"{type(error).__name__}: {error}".removesuffix(": ")
        at_s = time.monotonic()
        count.failures.append(Failure(kind, at_s, connection.connected_s, connection.task))


def _body_size(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise BadAnswer("no length")


def main() -> None:
    """Count until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m tests.zeroloss.client", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--users", type=int, default=4, help="of each kind")
    parser.add_argument("--pause", type=float, default=0.0, help="between requests, seconds")
    chosen = parser.parse_args()
    count = asyncio.run(
        run((chosen.address, chosen.port), users=chosen.users, pause_s=chosen.pause)
    )
    sys.stdout.write(msgspec.json.encode(count).decode() + "\n")


if __name__ == "__main__":
    main()
