"""Passes on what comes to published ports over IPv6, and the worker that says which those are.

The kernel translates addresses within one family only; between two of them somebody must take the
connection and make another one. The sockets are made by the worker and handed over, so a port is
held before the relay runs and while it is started again: who connects meanwhile waits. The process
outlives the worker, and ends when nobody needs it. Everything is bounded; a connection that cannot
be made further is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
from pathlib import Path
from typing import Final

from worker.network.relay import wire
from worker.network.relay.datagrams import Datagrams
from worker.network.relay.wire import Answer, Ear, Order

_CONNECTIONS_MAX: Final = 8192
_FILES_SPARED: Final = 4096
"""For ears and datagrams."""
_AT_ONCE: Final = 64
"""Connections of one ear accepted in one turn."""
_CONNECT_S: Final = 10.0
_PIECE_BYTES: Final = 256 << 10
_IDLE_S: Final = 10.0
_LOOK_S: Final = 5.0


class _Ear:
    """One socket that listens, with what came through it."""

    def __init__(self, told: Ear, sock: socket.socket) -> None:
        self.told = told
        self.sock = sock
        self.work: set[asyncio.Task[None]] = set()
        self.datagrams: Datagrams | None = None

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)
        self.sock.close()
        if self.datagrams is not None:
            self.datagrams.close()
        for task in self.work:
            task.cancel()


class Relay:
    """All ears of the node."""

    def __init__(self, connections_max: int) -> None:
        self._left = connections_max
        self._ears: dict[str, _Ear] = {}
        self._worker: socket.socket | None = None
        self._leaving = asyncio.Event()

    async def serve(self, path: Path) -> None:
        """Until nobody needs it, or another one has taken the path."""
        door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door.setblocking(False)
        door.bind(str(path))
        os.chmod(path, 0o600)
        door.listen(1)
        inode = _inode(path)
        asyncio.get_running_loop().add_reader(door, self._meet, door)
        idle_s = 0.0
        while idle_s < _IDLE_S and _inode(path) == inode and not self._leaving.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._leaving.wait(), _LOOK_S)
            idle_s = 0.0 if self._worker is not None or self._ears else idle_s + _LOOK_S
        if _inode(path) == inode:
            os.unlink(path)
        asyncio.get_running_loop().remove_reader(door)
        door.close()
        self._part()
        for key in list(self._ears):
            self._drop(key)

    # The worker -------------------------------------------------------------------------------

    def _meet(self, door: socket.socket) -> None:
        """The newest worker is the one: an older one is about to end."""
        try:
            connection, _ = door.accept()
        except OSError:
            return
        self._part()
        connection.setblocking(True)
        connection.settimeout(_LOOK_S)  # it reads at once, or it is no worker
        try:
            for ear in self._ears.values():
                wire.send(connection, Answer(ear=ear.told), ear.sock.fileno())
            wire.send(connection, Answer())
        except OSError:
            connection.close()
            return
        connection.setblocking(False)
        self._worker = connection
        asyncio.get_running_loop().add_reader(connection, self._obey, connection)

    def _part(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            asyncio.get_running_loop().remove_reader(worker)
            worker.close()

    def _obey(self, connection: socket.socket) -> None:
        try:
            order, sock = wire.receive(connection, Order)
            problem = self._carry_out(order, sock)
            wire.send(connection, Answer(problem=problem))
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError):
            self._part()

    def _carry_out(self, order: Order, sock: socket.socket | None) -> str:
        """Empty, or why it was not done."""
        self._drop(order.gone)
        if order.leave:
            self._leaving.set()
        if order.put is None:
            return ""
        if sock is None:
            return f"{order.put.key}: it came without its socket"
        known = self._ears.get(order.put.key)
        if known is not None and known.told == order.put:
            sock.close()  # told again by another worker: what comes through it goes on
            return ""
        self._drop(order.put.key)
        ear = self._ears[order.put.key] = _Ear(order.put, sock)
        loop = asyncio.get_running_loop()
        if order.put.protocol == "udp":
            ear.datagrams = Datagrams(sock, (order.put.address, order.put.port))
            loop.add_reader(sock, ear.datagrams.hear)
        else:
            loop.add_reader(sock, self._accept, ear)
        return ""

    def _drop(self, key: str) -> None:
        ear = self._ears.pop(key, None)
        if ear is not None:
            ear.close()

    # Connections ------------------------------------------------------------------------------

    def _accept(self, ear: _Ear) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, _ = ear.sock.accept()
            except OSError:
                return
            if not self._left:
                _reset(client)
                continue
            self._left -= 1
            task = asyncio.ensure_future(_pass_on(client, ear.told))
            ear.work.add(task)
            task.add_done_callback(lambda done: self._over(ear, done))

    def _over(self, ear: _Ear, task: asyncio.Task[None]) -> None:
        self._left += 1
        ear.work.discard(task)


async def _pass_on(client: socket.socket, to: Ear) -> None:
    """A connection, until both sides have ended it, or one has broken it off."""
    server = None
    try:
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        async with asyncio.timeout(_CONNECT_S):
            server = await asyncio.open_connection(to.address, to.port)
        server[1].get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        ours = await asyncio.open_connection(sock=client)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(_pump(ours[0], server[1]))
                both.create_task(_pump(server[0], ours[1]))
        except* OSError:  # one side has broken it off: so do we
            ours[1].transport.abort()
        finally:
            ours[1].close()
    except (OSError, TimeoutError):
        _reset(client)
    finally:
        if server is not None:
            server[1].transport.abort()
        client.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """One direction, to its end. Raises: OSError."""
    while data := await source.read(_PIECE_BYTES):
        sink.write(data)
        await sink.drain()
    sink.write_eof()


def _reset(client: socket.socket) -> None:
    """What a client sees that nobody listens for."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def run(path: Path) -> None:
    """Serve until nobody needs it."""
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    files_max = min(files_max, 2 * _CONNECTIONS_MAX + _FILES_SPARED)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    path.unlink(missing_ok=True)
    asyncio.run(_serve(path, max(1, (files_max - _FILES_SPARED) // 2)))


async def _serve(path: Path, connections_max: int) -> None:
    await Relay(connections_max).serve(path)
