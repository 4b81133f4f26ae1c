"""The worker's end of the resolver: starts it, finds it again, tells it who is called what.

The process is nobody's child and outlives the worker. When it is gone it is started again and told
everything; containers keep their ports, so their rules stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import structlog

from shoal.errors import Unavailable
from worker.network.local.naming import Client, Place, Reply, Request, read_message, write_message

_START_DEADLINE_S: Final = 20.0
_ANSWER_DEADLINE_S: Final = 20.0
_POLL_S: Final = 0.01
_POLLS: Final = 2000
_LOG_BYTES_MAX: Final = 1 << 20
_AGAIN_S: Final = 1.0

_log = structlog.get_logger()


class Names:
    """Who is called what, for the resolver. moved: a client listens elsewhere than before."""

    def __init__(self, socket_path: Path, moved: Callable[[str, tuple[int, int]], None]) -> None:
        self._path = socket_path
        self._moved = moved
        self._clients: dict[str, Client] = {}
        self._others: dict[str, Place] = {}
        self._lock = asyncio.Lock()
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._keeper: asyncio.Task[None] | None = None

    async def put(self, client: Client) -> tuple[int, int]:
        """A client comes or has changed; where the resolver listens. Raises: Unavailable."""
        async with self._lock:
            await self._connected()
            reply = await self._ask(Request(clients=(client,)))
            ports = reply.ports.get(client.container)
            if ports is None:
                raise Unavailable(f"name server: {reply.errors.get(client.container, 'no answer')}")
            self._clients[client.container] = _with_ports(client, ports)
            return ports

    async def drop(self, container: str) -> None:
        """A client is gone. Idempotent."""
        async with self._lock:
            if self._clients.pop(container, None) is None or self._writer is None:
                return
            try:
                await self._ask(Request(gone=(container,)))
            except Unavailable as error:
                _log.warning("resolver.lost", reason=str(error))

    async def tell(self, others: Mapping[str, Place]) -> None:
        """Whoever has names without asking here, all of them. Raises: Unavailable."""
        async with self._lock:
            before, self._others = self._others, dict(others)
            if self._writer is None:
                if self._clients:  # else whoever comes first has everything told
                    await self._connected()
                return
            new = {key: place for key, place in others.items() if before.get(key) != place}
            gone = tuple(before.keys() - others.keys())
            if new or gone:
                await self._ask(Request(others=new, others_gone=gone))

    async def adopt(self, clients: list[Client]) -> None:
        """After a restart: these are all there are. Raises: Unavailable."""
        async with self._lock:
            self._clients = {client.container: client for client in clients}
            if clients or self._path.exists():
                await self._connected(start=bool(clients))

    async def close(self, *, end: bool) -> None:
        """Let go of it. end: nobody needs it any more, so it ends, too."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        async with self._lock:
            with contextlib.suppress(Unavailable):
                if end and self._writer is not None:
                    await self._ask(Request(leave=True))
            self._hang_up()

    async def _connected(self, *, start: bool = True) -> None:
        """A connection over which everything has been told. Raises: Unavailable."""
        if self._writer is not None:
            return
        if not await self._connect():
            if not start:
                return
            await self._start()
        clients = tuple(self._clients.values())
        reply = await self._ask(Request(whole=True, clients=clients, others=self._others))
        for client in clients:
            ports = reply.ports.get(client.container)
            if ports is None:
                reason = reply.errors.get(client.container, "no answer")
                _log.error("resolver.client_refused", container=client.container, reason=reason)
            elif ports != client.ports:
                self._clients[client.container] = _with_ports(client, ports)
                self._moved(client.container, ports)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="resolver")

    async def _keep(self) -> None:
        """Notice its end, and start another one while somebody needs it."""
        while True:
            await asyncio.sleep(_AGAIN_S)
            async with self._lock:
                if self._reader is not None and self._reader.at_eof():
                    self._hang_up()
                if self._writer is None and self._clients:
                    _log.warning("resolver.ended")
                    with contextlib.suppress(Unavailable):
                        await self._connected()

    async def _ask(self, request: Request) -> Reply:
        if self._reader is None or self._writer is None:
            raise Unavailable("the name server is not connected")
        try:
            async with asyncio.timeout(_ANSWER_DEADLINE_S):
                await write_message(self._writer, request)
                return await read_message(self._reader, Reply)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self._hang_up()
            raise Unavailable(f"the name server went away: {error!r}: try again") from error
        except BaseException:  # cancelled: the next question would be given this one's answer
            self._hang_up()
            raise

    async def _connect(self) -> bool:
        try:
            self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        except OSError:
            return False
        return True

    def _hang_up(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._reader = self._writer = None

    async def _start(self) -> None:
        log = await asyncio.to_thread(_open_log, self._path.with_suffix(".log"))
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "worker.resolver", str(self._path),
                stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, env=dict(os.environ),
            )  # fmt: skip
        finally:
            os.close(log)
        try:
            async with asyncio.timeout(_START_DEADLINE_S):
                if await process.wait() != 0:
                    raise Unavailable("name server: it does not start: resolver.log says why")
                for _ in range(_POLLS):
                    if await self._connect():
                        return
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            pass
        raise Unavailable("the name server does not start in time: try again")


def _open_log(path: Path) -> int:
    """What it has to say is its own: nobody waits for its end by reading."""
    if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
        path.replace(path.with_suffix(".log.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)


def _with_ports(client: Client, ports: tuple[int, int]) -> Client:
    return Client(
        container=client.container, netns_path=client.netns_path, places=client.places,
        servers=client.servers, forwards=client.forwards, ports=ports,
    )  # fmt: skip
