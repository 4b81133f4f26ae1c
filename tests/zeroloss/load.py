"""The load on the entry nodes: our own clients, which check every answer, and wrk for the numbers.

wrk says how many requests it made and how many connections failed it in one way or another; it
never asks again. A load is stopped before it is counted; whatever happens, its processes end.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable

import msgspec

from tests.zeroloss.client import Count, Failure

START_TIMEOUT_S = 40.0
STOP_TIMEOUT_S = 60.0
"""More than a client's longest request."""
_WRK_RUNS_S = 86_400  # until it is stopped
_ERRORS = re.compile(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)")
_BAD_STATUS = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_REQUESTS = re.compile(r"(\d+) requests in ")


class Tally(msgspec.Struct, frozen=True):
    """What all clients have seen together."""

    requests: int = 0
    failed: int = 0
    slowest_s: float = 0.0
    failures: tuple[Failure, ...] = ()
    """Those of our own clients; wrk only counts."""
    tasks: frozenset[str] = frozenset()
    complaints: tuple[str, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.requests + other.requests,
            self.failed + other.failed,
            max(self.slowest_s, other.slowest_s),
            self.failures + other.failures,
            self.tasks | other.tasks,
            self.complaints + other.complaints,
        )


class Load:
    """Clients that run until `stop`."""

    def __init__(self) -> None:
        self._clients: list[subprocess.Popen[str]] = []
        self._wrks: list[subprocess.Popen[str]] = []

    def start(
        self, addresses: Iterable[str], port: int, *, users: int, pause_s: float, wrk: int
    ) -> None:
        """Own users and wrk's connections, so many per address and kind; wrk 0: without it."""
        for address in addresses:
            self._clients.append(_client(address, port, users, pause_s))
            if wrk:
                self._wrks += [_wrk(address, port, wrk, keep=keep) for keep in (True, False)]
        for client in self._clients:
            if client.stdout is None or client.stdout.readline() != "ready\n":
                raise RuntimeError("a client has not started")

    def stop(self) -> Tally:
        """End all and count. Raises: RuntimeError for what did not count to its end."""
        tally = Tally()
        for client in self._clients:
            client.terminate()
        for wrk in self._wrks:
            wrk.send_signal(signal.SIGINT)
        for client in self._clients:
            tally += _tally(_said(client))
        for wrk in self._wrks:
            tally += _tally_of_wrk(_said(wrk))
        self._clients, self._wrks = [], []
        return tally

    def kill(self) -> None:
        """End what still runs. Idempotent."""
        for process in (*self._clients, *self._wrks):
            process.kill()
            process.wait(STOP_TIMEOUT_S)
            if process.stdout is not None:
                process.stdout.close()


def has_wrk() -> bool:
    """Whether wrk is installed."""
    return shutil.which("wrk") is not None


def _client(address: str, port: int, users: int, pause_s: float) -> subprocess.Popen[str]:
    words = [
        sys.executable, "-m", "tests.zeroloss.client", address, str(port),
        "--users", str(users), "--pause", str(pause_s),
    ]  # fmt: skip
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def _wrk(address: str, port: int, connections: int, *, keep: bool) -> subprocess.Popen[str]:
    closing = () if keep else ("-H", "Connection: close")
    words = [
        "wrk", "-t1", f"-c{connections}", f"-d{_WRK_RUNS_S}s", "--timeout", "20s", *closing,
        f"http://{address}:{port}/wrk",
    ]  # fmt: skip
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def _said(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=STOP_TIMEOUT_S)
    if process.returncode != 0:
        raise RuntimeError(f"{process.args!r}: exit {process.returncode}: {text}")
    return text


def _tally(said: str) -> Tally:
    count = msgspec.json.decode(said, type=Count)
    return Tally(
        count.answered + count.failed,
        count.failed,
        count.slowest_s,
        tuple(count.failures),
        frozenset(count.tasks),
    )


def _tally_of_wrk(said: str) -> Tally:
    requests = _REQUESTS.search(said)
    if requests is None:
        raise RuntimeError(f"wrk: {said}")
    errors, bad = _ERRORS.search(said), _BAD_STATUS.search(said)
    broken = sum(map(int, errors.groups())) if errors else 0
    refused = int(bad[1]) if bad else 0
    complaints = tuple(f"wrk: {found[0]}" for found in (errors, bad) if found)
    return Tally(int(requests[1]) + broken, broken + refused, complaints=complaints)
