"""Listening: the unix socket, and TCP for clients with a certificate.

The unix socket gets its owner and mode before it gets its name, so nobody can connect in between.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import structlog
from aiohttp import web

from engine.http.dispatch import Dispatcher
from engine.http.settings import TlsSettings
from shoal.errors import FailedPrecondition
from shoal.settings.sockets import open_to_group

BACKLOG = 512
SHUTDOWN_S = 2.0
KEEPALIVE_S = 75.0
HEADER_BYTES_MAX = 128 << 10  # X-Registry-Config holds the credentials of many registries

_log = structlog.get_logger()


@asynccontextmanager
async def serve(
    dispatcher: Dispatcher, socket_path: Path, tls: TlsSettings | None
) -> AsyncIterator[tuple[str, int] | None]:
    """Serve until left. Result: the TCP address in use, if there is one.

    Raises: FailedPrecondition for what cannot be listened on, InvalidArgument for certificates.
    """
    server = web.Server(
        dispatcher,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=KEEPALIVE_S,
        max_line_size=HEADER_BYTES_MAX,
        max_field_size=HEADER_BYTES_MAX,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(dispatcher.close)
        stack.push_async_callback(server.shutdown, SHUTDOWN_S)
        stack.callback(server.pre_shutdown)
        address = None
        if tls is not None:
            from engine.http.tls import TlsFront  # anyio is only loaded where it is wanted

            front = await stack.enter_async_context(TlsFront(server, tls))
            address = front.address
            _log.info("engine.tcp_listening", host=address[0], port=address[1])
        listener = await _listen(server, socket_path)
        stack.callback(_remove, socket_path, os.stat(socket_path).st_ino)
        stack.callback(listener.close)
        yield address


async def _listen(server: web.Server, path: Path) -> asyncio.Server:
    unnamed = path.with_name(path.name + ".new")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unnamed.unlink(missing_ok=True)
        listener.bind(str(unnamed))
        open_to_group(unnamed)
        listener.listen(BACKLOG)
        unnamed.rename(path)
    except OSError as error:
        listener.close()
        raise FailedPrecondition(f"{path}: cannot be listened on: {error.strerror}") from error
    listener.setblocking(False)
    loop = asyncio.get_running_loop()
    return await loop.create_unix_server(server, sock=listener, backlog=BACKLOG)


def _remove(path: Path, inode: int) -> None:
    """Remove our socket, not one a successor has put there."""
    with suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()
