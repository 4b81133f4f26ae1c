"""Serves 127.0.0.11 in every container's network namespace, and the worker that says who they are.

A container is known by the socket its query came through, so it cannot pretend to be another one.
The sockets are opened inside the container's namespace, on ports of ours: port 53 stays free for
the container. The process outlives the worker, and ends when nobody needs it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Final

from worker.network import netns
from worker.network.local.naming import Client, Reply, Request, read_message, write_message
from worker.network.local.ruleset import NAMES_ADDRESS
from worker.resolver import answers
from worker.resolver.forward import Forwarder
from worker.resolver.index import Index

_AT_ONCE: Final = 16
"""Datagrams of one container read in one turn."""
_QUERIES_MAX: Final = 4096
"""Questions to the outside, of all containers, that wait for an answer."""
_TCP_CLIENTS_MAX: Final = 256
_IDLE_S: Final = 10.0
_LOOK_S: Final = 5.0
_LEAVE_S: Final = 2.0
_QUERY_BYTES_MAX: Final = 4096


class _Ears:
    """The sockets of one container."""

    def __init__(self, udp: socket.socket, tcp: socket.socket) -> None:
        self.udp, self.tcp = udp, tcp
        self.server: asyncio.Server | None = None

    @property
    def ports(self) -> tuple[int, int]:
        return self.udp.getsockname()[1], self.tcp.getsockname()[1]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.udp)
        self.udp.close()
        if self.server is not None:
            self.server.close()
        self.tcp.close()


class Resolver:
    """All containers of the node."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._index = Index()
        self._ears: dict[str, _Ears] = {}
        self._forwarder = forwarder
        self._waiting: set[asyncio.Task[None]] = set()
        self._tcp_clients = 0
        self._workers: set[asyncio.Future[None]] = set()
        self._leaving = asyncio.Event()

    async def serve(self, path: Path) -> None:
        """Until nobody needs it, or another one has taken the path."""
        server = await asyncio.start_unix_server(self._worker, str(path))
        os.chmod(path, 0o600)
        inode = _inode(path)
        idle_s = 0.0
        async with server:
            while idle_s < _IDLE_S and _inode(path) == inode:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._leaving.wait(), _LOOK_S)
                    break
                idle_s = 0.0 if self._workers or len(self._index) else idle_s + _LOOK_S
        if _inode(path) == inode:
            os.unlink(path)
        if self._workers:  # they hang up by themselves
            await asyncio.wait(self._workers, timeout=_LEAVE_S)

    # The worker -------------------------------------------------------------------------------

    async def _worker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._workers.add(over)
        try:
            while True:
                request = await read_message(reader, Request)
                await write_message(writer, await self.change(request))
        except (EOFError, OSError, ValueError):
            return
        finally:
            self._workers.discard(over)
            over.cancel()
            writer.close()

    async def change(self, request: Request) -> Reply:
        """Take a change in."""
        gone = set(request.gone)
        if request.leave:
            asyncio.get_running_loop().call_soon(self._leaving.set)
        if request.whole:
            gone |= set(self._index.containers) - {one.container for one in request.clients}
        for container in gone:
            self._drop(container)
        self._index.change_others(request.others, request.others_gone, whole=request.whole)
        ports, errors = {}, {}
        for client in request.clients:
            try:
                ports[client.container] = await self._put(client)
            except OSError as error:
                errors[client.container] = str(error)
        return Reply(ports=ports, errors=errors)

    def _drop(self, container: str) -> None:
        self._index.drop(container)
        ears = self._ears.pop(container, None)
        if ears is not None:
            ears.close()

    async def _put(self, client: Client) -> tuple[int, int]:
        known = self._index.client(client.container)
        ears = self._ears.get(client.container)
        if ears is None or known is None or known.netns_path != client.netns_path:
            self._drop(client.container)
            ears = self._ears[client.container] = _open(client)
            asyncio.get_running_loop().add_reader(ears.udp, self._hear, client.container, ears.udp)
            ears.server = await asyncio.start_server(
                lambda reader, writer: self._converse(client.container, reader, writer),
                sock=ears.tcp,
            )
        self._index.put(client)
        return ears.ports

    # Containers -------------------------------------------------------------------------------

    def _hear(self, container: str, udp: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                query, sender = udp.recvfrom(_QUERY_BYTES_MAX)
            except OSError:
                return
            reply = answers.answer(self._index, container, query, udp=True)
            if reply is None:
                self._begin(self._pass_on(container, udp, query, sender))
            else:
                _send(udp, reply, sender)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._waiting) >= _QUERIES_MAX:
            work.close()  # the client asks again
            return
        task = asyncio.ensure_future(work)
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _pass_on(
        self, container: str, udp: socket.socket, query: bytes, sender: tuple[str, int]
    ) -> None:
        _send(udp, await self._outside(container, query, udp=True), sender)

    async def _outside(self, container: str, query: bytes, *, udp: bool) -> bytes:
        client = self._index.client(container)
        reply = None
        if client is not None and client.forwards:
            reply = await self._forwarder.ask(query, client.servers, udp=udp)
        return answers.failure(query) if reply is None else reply

    async def _converse(
        self, container: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Queries over TCP, one after the other, until the client has no more."""
        if self._tcp_clients >= _TCP_CLIENTS_MAX:
            writer.close()
            return
        self._tcp_clients += 1
        try:
            async with contextlib.AsyncExitStack() as stack:
                stack.callback(writer.close)
                while True:
                    async with asyncio.timeout(_IDLE_S):
                        length = int.from_bytes(await reader.readexactly(2), "big")
                        query = await reader.readexactly(length)
                    reply = answers.answer(self._index, container, query, udp=False)
                    if reply is None:
                        reply = await self._outside(container, query, udp=False)
                    writer.write(len(reply).to_bytes(2, "big") + reply)
                    async with asyncio.timeout(_IDLE_S):
                        await writer.drain()
        except (EOFError, OSError, TimeoutError):
            return
        finally:
            self._tcp_clients -= 1


def _open(client: Client) -> _Ears:
    """Its sockets, in its namespace. Raises: OSError."""
    with netns.entered(Path(client.netns_path)), contextlib.ExitStack() as undo:
        udp = _bound(socket.SOCK_DGRAM, client.ports[0])
        undo.callback(udp.close)
        tcp = _bound(socket.SOCK_STREAM, client.ports[1])
        undo.pop_all()
    return _Ears(udp, tcp)


def _bound(kind: socket.SocketKind, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, kind)
    try:
        made.setblocking(False)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((NAMES_ADDRESS, port))
        except OSError:
            if not port:
                raise
            made.bind((NAMES_ADDRESS, 0))  # the container has taken it meanwhile
    except BaseException:
        made.close()
        raise
    return made


def _send(udp: socket.socket, reply: bytes, sender: tuple[str, int]) -> None:
    if reply:
        with contextlib.suppress(OSError):  # the container is gone, or its buffer is full
            udp.sendto(reply, sender)


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def run(path: Path) -> None:
    """Serve until nobody needs it."""
    path.unlink(missing_ok=True)
    asyncio.run(Resolver(Forwarder()).serve(path))
