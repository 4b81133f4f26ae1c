"""The API over TCP: TLS with client certificates, in front of the server.

asyncio's own TLS knows no half-close: a client that ends its input loses the output that is still
to come. anyio's TLS stream keeps it; each connection is joined with the server by a socket pair,
whose halves close one by one. Refuses to serve without a client certificate: whoever may use the
API is root on the node.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import structlog
from aiohttp import web
from anyio.abc import ByteStream, SocketAttribute, TaskGroup
from anyio.streams.tls import TLSStream

from engine.http.settings import TlsSettings
from shoal.errors import FailedPrecondition, InvalidArgument

HANDSHAKE_S = 10.0
CONNECTIONS_MAX = 1_000
_CHUNK_BYTES = 64 << 10

_log = structlog.get_logger()


class TlsFront:
    """Listens and passes connections on. `async with` it."""

    def __init__(self, server: web.Server, settings: TlsSettings) -> None:
        self.address: tuple[str, int] = (settings.host, settings.port)
        self._server = server
        self._settings = settings
        self._work: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(CONNECTIONS_MAX)

    async def __aenter__(self) -> Self:
        """Raises: FailedPrecondition, InvalidArgument."""
        context = await asyncio.to_thread(_context, self._settings.directory)
        host, port = self.address
        try:
            listener = await anyio.create_tcp_listener(local_host=host or None, local_port=port)
        except OSError as error:
            raise FailedPrecondition(
                f"docker-addr: {host}:{port} cannot be listened on ({error}): free it, or give "
                "another --docker-addr"
            ) from error
        self.address = (host, listener.extra(SocketAttribute.local_port))  # noqa: S610 - not Django
        self._work = asyncio.create_task(self._serve(listener, context), name="engine tcp")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)

    async def _serve(
        self, listener: anyio.abc.Listener[anyio.abc.SocketStream], context: ssl.SSLContext
    ) -> None:
        async def handle(stream: anyio.abc.SocketStream) -> None:
            async with self._slots, stream:
                await self._handle(stream, context)

        async with listener:
            await listener.serve(handle)

    async def _handle(self, stream: anyio.abc.SocketStream, context: ssl.SSLContext) -> None:
        """One connection from handshake to end; its failures are its own."""
        peer = stream.extra(SocketAttribute.remote_address, None)  # noqa: S610 - not Django
        try:
            with anyio.fail_after(HANDSHAKE_S):
                secured = await TLSStream.wrap(stream, server_side=True, ssl_context=context)
        except (ssl.SSLError, OSError, TimeoutError, anyio.BrokenResourceError) as error:
            _log.info("engine.handshake_failed", peer=str(peer), reason=str(error))
            return
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            return
        await self._join(secured)

    async def _join(self, secured: TLSStream) -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.connect_accepted_socket(self._server, theirs)
        plain = await anyio.abc.SocketStream.from_socket(ours)
        async with plain, anyio.create_task_group() as pumps:
            pumps.start_soon(_pump_in, secured, plain)
            pumps.start_soon(_pump_out, plain, secured, pumps)


async def _pump_in(secured: TLSStream, plain: anyio.abc.SocketStream) -> None:
    """From the client; its end of input becomes the server's."""
    await _copy(secured, plain)
    try:
        await plain.send_eof()
    except (OSError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        return


async def _pump_out(plain: anyio.abc.SocketStream, secured: TLSStream, pumps: TaskGroup) -> None:
    """To the client; the server's end is the end of the connection."""
    await _copy(plain, secured)
    try:
        with anyio.move_on_after(HANDSHAKE_S):
            await secured.aclose()
    except (OSError, ssl.SSLError, anyio.ClosedResourceError, anyio.BrokenResourceError):
        pass
    pumps.cancel_scope.cancel()


async def _copy(source: ByteStream, target: ByteStream) -> None:
    try:
        while True:
            await target.send(await source.receive(_CHUNK_BYTES))
    except (
        OSError, ssl.SSLError, anyio.EndOfStream, anyio.ClosedResourceError,
        anyio.BrokenResourceError,
    ):  # fmt: skip
        return


def _context(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_verify_locations(directory / "ca.pem")
        context.load_cert_chain(directory / "cert.pem", directory / "key.pem")
    except (OSError, ssl.SSLError) as error:
        raise InvalidArgument(
            f"docker-tls: {directory} must hold ca.pem, cert.pem and key.pem: {error}"
        ) from error
    return context
