"""One try to make a call at the leader: here, or at another manager over the wire.

Invariant: a try knows whether it may have been begun, and whether its client has seen an answer;
what follows from that is decided in `repeating`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, Protocol

import grpc

from manager.leadership.repeating import Failure
from manager.leadership.scope import Scope
from shoal.errors import InvalidArgument, NotLeader, SwarmError, Unavailable
from shoal.wire.errors import from_rpc_error, is_lost
from shoal.wire.relay import Attempt, Connecting

CONNECT_TIMEOUT_S = 2.0
RENEWED_EVERY_S = 1.0
"""How often a channel that finds no leader is replaced: in between it tries often by itself."""

_FAILED = {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}


class Call(Protocol):
    """A try."""

    def answers(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The answers. Raises: SwarmError, AioRpcError."""
        ...

    def failure(self, error: SwarmError | grpc.aio.AioRpcError) -> Failure:
        """How far it had come when `answers` raised this."""
        ...

    async def end_as(self, error: SwarmError | grpc.aio.AioRpcError) -> None:
        """End the client's call as this one ended, if more than the error is to be told."""
        ...


class Served:
    """A call that came in as bytes, served by a handler of this manager, of any shape."""

    def __init__(self, handler: Any, context: Any) -> None:
        self._handler = handler
        self._context = context
        self._answered = False

    async def answers(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """See `Call`."""
        handler, context = self._handler, self._context
        decode = handler.request_deserializer or bytes
        encode = handler.response_serializer or bytes

        async def decoded() -> AsyncIterator[Any]:
            async for request in requests:
                yield decode(request)

        given: Any = decoded()
        if not handler.request_streaming:
            given = await anext(given, None)
            if given is None:
                raise InvalidArgument("the call ended without a request")
        if handler.response_streaming:
            behaviour = handler.stream_stream or handler.unary_stream
            async with aclosing(behaviour(given, context)) as answers:
                async for answer in answers:
                    self._answered = True
                    yield encode(answer)
        else:
            behaviour = handler.stream_unary or handler.unary_unary
            answer = await behaviour(given, context)
            self._answered = True
            yield encode(answer)

    def failure(self, error: SwarmError | grpc.aio.AioRpcError) -> Failure:
        """See `Call`."""
        meant = from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error
        return Failure(meant, lost=False, sent=True, answered=self._answered)

    async def end_as(self, error: SwarmError | grpc.aio.AioRpcError) -> None:
        """See `Call`."""


class Relayed:
    """A call that is passed on to the manager that leads, for as long as that one does."""

    def __init__(self, attempt: Attempt, relays: Scope) -> None:
        """relays: ends with the other manager's leadership."""
        self._attempt = attempt
        self._relays = relays

    async def answers(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """See `Call`."""
        async with aclosing(self._relays.steps(self._attempt.answers(requests))) as answers:
            async for answer in answers:
                yield answer

    def failure(self, error: SwarmError | grpc.aio.AioRpcError) -> Failure:
        """See `Call`."""
        if isinstance(error, grpc.aio.AioRpcError):
            lost, meant = is_lost(error), from_rpc_error(error)
            if lost:
                meant = Unavailable(f"the leader went away during the call: {meant.message}")
        else:
            lost, meant = isinstance(error, NotLeader | Unavailable), error
        attempt = self._attempt
        return Failure(meant, lost=lost, sent=attempt.sent, answered=attempt.answered)

    async def end_as(self, error: SwarmError | grpc.aio.AioRpcError) -> None:
        """See `Call`."""
        if isinstance(error, grpc.aio.AioRpcError):
            await self._attempt.end_as(error)


class Route:
    """Implements `Upstream`: the way to a leader, for a call that waits for it until then."""

    label = "the leader"

    def __init__(self, dial: Dial, address: str, until_s: float) -> None:
        """until_s: on the loop's clock."""
        self._dial = dial
        self._address = address
        self._until_s = until_s

    async def channel(self) -> grpc.aio.Channel:
        """See `Upstream`."""
        await self._dial.to(self._address)
        return await self._dial.channel()

    async def connected(self, call: Connecting) -> None:
        """See `Upstream`."""
        left_s = self._until_s - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(min(CONNECT_TIMEOUT_S, left_s)):
                await call.wait_for_connection()
        except TimeoutError:
            call.cancel()
            raise Unavailable(
                f"the leader at {self._address} cannot be reached from this manager: try again, or"
                " ask another manager"
            ) from None


class Dial:
    """Channels to other managers; one is kept, to the one that leads.

    A renewed certificate is shown by a new channel: the leader refuses calls on a connection whose
    certificate has ended, however long it lives. Calls on the old channel go on; it is closed when
    the next one is retired.
    """

    def __init__(self, open_channel: Any, identity: Callable[[], object] = lambda: None) -> None:
        """open_channel: from HOST:PORT to a channel with this node's certificate.

        identity: the one in use now; another object means another certificate.
        """
        self._open = open_channel
        self._identity = identity
        self._shown: object = None
        self._opened_s = 0.0
        self._channel: grpc.aio.Channel | None = None
        self._retired: grpc.aio.Channel | None = None
        self.address = ""

    async def to(self, address: str) -> Dial:
        """Point it at a leader."""
        if address != self.address:
            await self.close()
            self.address = address
        return self

    async def channel(self) -> grpc.aio.Channel:
        """The channel; a broken one is replaced, so that no pause grows between attempts.

        Calls that wait for that one then fail and are made again: so it is not replaced often.
        """
        old, now_s = self._channel, asyncio.get_running_loop().time()
        is_young = now_s < self._opened_s + RENEWED_EVERY_S
        if old is not None and not is_young and old.get_state() in _FAILED:
            self._channel = None
            await old.close()
        if self._channel is not None and self._identity() is not self._shown:
            retired, self._retired, self._channel = self._retired, self._channel, None
            if retired is not None:
                await retired.close()
        if self._channel is None:
            self._shown, self._opened_s = self._identity(), now_s
            self._channel = self._open(self.address)
        return self._channel

    async def close(self) -> None:
        """Close the channels, and with them every call."""
        channels = (self._channel, self._retired)
        self._channel = self._retired = None
        for channel in channels:
            if channel is not None:
                await channel.close()
