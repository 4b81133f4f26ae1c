"""One gRPC channel per etcd member, and which of them to ask.

A request is only sent on a connection that stands, so "could not connect" always means that nothing
was sent. A member that fails is left for the next one; there is no favourite to return to.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import grpc

from manager.etcd.settings import EtcdSettings, read_file
from shoal.errors import InvalidArgument, Unavailable

MESSAGE_BYTES_MAX = 16 << 20
CONNECT_TIMEOUT_S = 1.0
"""A member that has not connected by then is passed over, as long as there are others."""
KEEPALIVE_S = 10
"""etcd refuses pings more often than every 5 s."""
KEEPALIVE_TIMEOUT_S = 5
RECONNECT_MIN_S = 0.1
RECONNECT_MAX_S = 1.0

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.initial_reconnect_backoff_ms", int(RECONNECT_MIN_S * 1000)),
    ("grpc.min_reconnect_backoff_ms", int(RECONNECT_MAX_S * 1000)),
    ("grpc.max_reconnect_backoff_ms", int(RECONNECT_MAX_S * 1000)),
]


class Member(NamedTuple):
    """One etcd server as we reach it."""

    endpoint: str
    channel: grpc.aio.Channel


class Channels:
    """Opens the channels when entered, closes them when left."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._endpoints = settings.endpoints
        self._credentials = _credentials(settings) if settings.tls else None
        self._members: list[Member] = []
        self._current = 0
        self._closed = False

    async def __aenter__(self) -> Self:
        """Open; nothing connects before it is needed."""
        self._members = [Member(one, self._open(one)) for one in self._endpoints]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; requests under way end as Unavailable."""
        self._closed = True
        for member in self._members:
            await member.channel.close()

    async def connected(self, deadline_s: float) -> Member:
        """A member with a connection that stands. deadline_s: on the event loop's clock.

        Raises: Unavailable when no member answers until then; nothing has been sent.
        """
        loop = asyncio.get_running_loop()
        while (left_s := deadline_s - loop.time()) > 0:
            if self._closed:
                raise Unavailable("etcd: the client is closed")
            member = self._members[self._current]
            try:
                async with asyncio.timeout(min(left_s, CONNECT_TIMEOUT_S)):
                    await member.channel.channel_ready()
            except TimeoutError:
                self.failed(member)
                continue
            return member
        raise Unavailable(
            f"etcd: no connection to {', '.join(self._endpoints)}: check that etcd runs, the "
            "addresses, and with TLS that `cacert`, `cert` and `key` are of the same authority"
        )

    def failed(self, member: Member) -> None:
        """Ask the next one from now on."""
        if self._members[self._current] is member:
            self._current = (self._current + 1) % len(self._members)

    def _open(self, endpoint: str) -> grpc.aio.Channel:
        if self._credentials is None:
            return grpc.aio.insecure_channel(endpoint, options=_OPTIONS)
        return grpc.aio.secure_channel(endpoint, self._credentials, options=_OPTIONS)


def _credentials(settings: EtcdSettings) -> grpc.ChannelCredentials:
    root, chain, key = (
        None if path is None else _pem(path, name)
        for name, path in (
            ("cacert", settings.cacert),
            ("cert", settings.cert),
            ("key", settings.key),
        )
    )
    return grpc.ssl_channel_credentials(
        root_certificates=root, private_key=key, certificate_chain=chain
    )


def _pem(path: Path, name: str) -> bytes:
    content = read_file(path, name)
    if b"-----BEGIN " not in content:
        raise InvalidArgument(f"store: {name} {path}: not a PEM file")
    return content
