"""The worker's end of the relay: starts it, finds it again, tells it which ports there are.

Blocking, and used by one thread; every call is bounded. What cannot be told at once is told by
`tend`, which is called again and again. Invariant: each ear's socket is here, too, so neither the
end of the relay nor that of the worker lets go of a port.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import structlog

from worker.network.relay import wire
from worker.network.relay.wire import Answer, Ear, Order

_ANSWER_S: Final = 5.0
_STARTING_S: Final = 0.05
_LOOK_S: Final = 1.0
_LOG_BYTES_MAX: Final = 1 << 20

_log = structlog.get_logger()


class Relays:
    """The ears of the node."""

    def __init__(self, path: Path) -> None:
        """path: the relay's socket."""
        self._path = path
        self._ears: dict[str, tuple[Ear, socket.socket]] = {}
        self._told: set[str] = set()
        self._connection: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def adopt(self) -> Mapping[str, socket.socket]:
        """After a restart: the sockets the relay of an earlier process has, by key; yours now."""
        if not self._path.exists():
            return {}
        return self._connect()

    def put(self, ear: Ear, sock: socket.socket) -> None:
        """Have it served, from now on or in a moment; the socket stays yours."""
        self._forget(ear.key)
        self._ears[ear.key] = ear, sock.dup()
        if self._connection is not None:
            self._tell()

    def drop(self, keys: Iterable[str]) -> None:
        """Serve them no longer: afterwards nobody but the caller has the sockets. Idempotent."""
        for key in keys:
            self._forget(key)
            if key in self._told:
                self._ask(Order(gone=key))
                self._told.discard(key)

    def disown(self, keys: Iterable[str]) -> None:
        """Have what `adopt` has found and nobody wants served no longer."""
        for key in keys:
            self._ask(Order(gone=key))

    def tend(self) -> float | None:
        """Start it if it is needed, tell it what it does not know.

        Result: seconds until this is wanted again; None: not before the next change.
        """
        if self._connection is not None and _is_gone(self._connection):
            _log.warning("relay.ended")
            self._hang_up()
        if not self._ears:
            return None
        if self._connection is None:
            for sock in self._connect().values():
                sock.close()  # they are those we have, or ports nobody knows
        if self._connection is None:
            self._start()
            return _STARTING_S
        self._tell()
        return _LOOK_S

    def close(self, *, end: bool) -> None:
        """Let go of it. end: nobody needs it any more, so it ends, too."""
        if end and self._connection is None and self._path.exists():
            for sock in self._connect().values():
                sock.close()
        if end and self._connection is not None:
            self._ask(Order(leave=True))
        self._hang_up()
        for _, sock in self._ears.values():
            sock.close()
        self._ears.clear()
        if self._process is not None:
            self._process.poll()

    def _forget(self, key: str) -> None:
        known = self._ears.pop(key, None)
        if known is not None:
            known[1].close()

    def _tell(self) -> None:
        for key, (ear, sock) in self._ears.items():
            if key not in self._told and self._ask(Order(put=ear), sock.fileno()):
                self._told.add(key)

    def _ask(self, order: Order, fd: int = -1) -> bool:
        """Whether it was done; `tend` tries again what was not."""
        if self._connection is None:
            return False
        try:
            wire.send(self._connection, order, fd)
            answer, _ = wire.receive(self._connection, Answer)
        except (EOFError, OSError, ValueError) as error:
            _log.warning("relay.lost", reason=str(error))
            self._hang_up()
            return False
        if answer.problem:
            _log.error("relay.refused", reason=answer.problem)
        return not answer.problem

    def _connect(self) -> dict[str, socket.socket]:
        """What it listens to, by key; nothing without a relay."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(_ANSWER_S)
        found: dict[str, socket.socket] = {}
        try:
            connection.connect(str(self._path))
            while True:
                answer, sock = wire.receive(connection, Answer)
                if answer.ear is None:
                    break
                if sock is not None:
                    found[answer.ear.key] = sock
        except (EOFError, OSError, ValueError):
            connection.close()
            return found
        self._connection = connection
        if answer.format != wire.FORMAT:  # of another version: its sockets are here now
            self._ask(Order(leave=True))
            self._hang_up()
        return found

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._told.clear()

    def _start(self) -> None:
        """Without waiting: who connects to a port meanwhile waits in its queue."""
        if self._process is not None and self._process.poll() is None:
            return
        if self._process is not None and self._process.returncode:
            _log.error("relay.not_started", reason=f"{self._path.with_suffix('.log')} says why")
        with contextlib.ExitStack() as stack:
            log = _open_log(self._path.with_suffix(".log"))
            stack.callback(os.close, log)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "worker.network.relay", str(self._path)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip


def _is_gone(connection: socket.socket) -> bool:
    """Between two orders it has nothing to say but its end."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0))


def _open_log(path: Path) -> int:
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
