"""Calls for the leader: served here while this manager leads, passed on as bytes otherwise.

Invariants: a call is passed on at most once (the second manager refuses it, its client tries
again); who called travels along, and only managers are believed about it. While nobody leads, a
call waits about as long as an election takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
import structlog
from typing_extensions import override

from manager.leadership.interfaces import Consensus, Leadership
from manager.leadership.scope import Scope
from shoal.errors import InvalidArgument, NotLeader, Unavailable
from shoal.security.forwarded import render_caller
from shoal.security.peer import current_caller
from shoal.wire.relay import Connecting, relay

LEADER_WAIT_S = 3.0
"""Longer than an election of 1 to 2 s, shorter than a caller's patience."""
CONNECT_TIMEOUT_S = 2.0
NO_LEADER = (
    "The cluster does not have a leader. It's possible that too few of the managers are online."
    " Make sure more than half of the managers are online."
)

_log = structlog.get_logger()


class HandlerTable:
    """Stands for a server in `add_..._to_server`, and keeps what it is given."""

    def __init__(self) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """The same handlers again, for servers that know no others."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """The handlers of one service by method."""
        self.methods.update({f"/{service}/{name}": one for name, one in handlers.items()})


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
        self._channel: grpc.aio.Channel | None = None
        self._retired: grpc.aio.Channel | None = None
        self.address = ""
        self.label = "the leader"

    async def to(self, address: str) -> Dial:
        """Point it at a leader."""
        if address != self.address:
            await self.close()
            self.address = address
        return self

    async def channel(self) -> grpc.aio.Channel:
        """The channel; a broken one is replaced, so that no pause grows between attempts."""
        failed = {grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN}
        old = self._channel
        if old is not None and old.get_state() in failed:
            self._channel = None
            await old.close()
        if self._channel is not None and self._identity() is not self._shown:
            retired, self._retired, self._channel = self._retired, self._channel, None
            if retired is not None:
                await retired.close()
        if self._channel is None:
            self._shown = self._identity()
            self._channel = self._open(self.address)
        return self._channel

    async def connected(self, call: Connecting) -> None:
        """Wait until the call is under way. Raises: Unavailable; the call is then cancelled."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await call.wait_for_connection()
        except TimeoutError:
            call.cancel()
            raise Unavailable(
                f"the leader at {self.address} cannot be reached from this manager: try again, or"
                " ask another manager"
            ) from None

    async def close(self) -> None:
        """Close the channels, and with them every call."""
        channels = (self._channel, self._retired)
        self._channel = self._retired = None
        for channel in channels:
            if channel is not None:
                await channel.close()


class LeaderRouter(grpc.GenericRpcHandler):
    """The handler of every service that only a leader serves."""

    def __init__(
        self,
        services: Iterable[str],
        consensus: Consensus,
        dial: Dial,
        *,
        why_no_leader: Callable[[], str] = lambda: NO_LEADER,
    ) -> None:
        """services: full names, `shoal.api.v1.Control`. why_no_leader: for people."""
        self._why_no_leader = why_no_leader
        self._services = frozenset(services)
        self._consensus = consensus
        self._dial = dial
        self._methods: Mapping[str, Any] | None = None
        self._serving = asyncio.Event()
        self._relays = Scope()

    @property
    def is_serving(self) -> bool:
        """Whether calls are served here."""
        return self._methods is not None

    def serve(self, methods: Mapping[str, Any]) -> None:
        """Serve calls with these handlers from now on."""
        self._methods = methods
        self._serving.set()

    def pass_on(self) -> None:
        """Pass calls on from now on."""
        self._methods = None
        self._serving.clear()

    def leader_changed(self, now: Leadership) -> None:
        """Calls at the leader of before end: what it says is of no worth any more."""
        if now.here or now.address not in ("", self._dial.address):
            relays, self._relays = self._relays, Scope()
            relays.end(NotLeader("the leader of the cluster has changed: try again"))

    async def close(self) -> None:
        """Close the connection to the leader."""
        await self._dial.close()

    @override
    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method, None if it is not one of ours."""
        method: str = handler_call_details.method
        if method.rpartition("/")[0].lstrip("/") not in self._services:
            return None
        if self._methods is not None:
            return self._methods.get(method)

        async def anywhere(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async with aclosing(self._anywhere(method, requests, context)) as answers:
                async for answer in answers:
                    yield answer

        return grpc.stream_stream_rpc_method_handler(anywhere)

    async def _anywhere(
        self, method: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncGenerator[bytes, None]:
        caller = current_caller()
        address = await self._find_leader(stay_here=caller.forwarded)
        if self._methods is not None:
            answers = _served(self._methods[method], requests, context)
        elif caller.forwarded or not address:
            # Whoever led when the wait ended does not any more.
            raise NotLeader("the leader of the cluster has changed: try again")
        else:
            relays = self._relays
            upstream = await self._dial.to(address)
            extra = (render_caller(caller),)
            answers = relays.steps(relay(upstream, method, requests, context, extra=extra))
        async with aclosing(answers):
            async for answer in answers:
                yield answer

    async def _find_leader(self, *, stay_here: bool) -> str:
        """Wait until this manager serves, or knows who does; the address of that one.

        stay_here: the call was passed on to this manager, which does not pass it on again.
        Raises: Unavailable, NotLeader.
        """
        serving = asyncio.ensure_future(self._serving.wait())
        known = asyncio.ensure_future(self._consensus.leadership.until(_is_elsewhere))
        try:
            waits = {serving} if stay_here else {serving, known}
            async with asyncio.timeout(LEADER_WAIT_S):
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            if stay_here:
                raise NotLeader("this manager does not lead the cluster: try again") from None
            raise Unavailable(self._why_no_leader()) from None
        finally:
            for wait in (serving, known):
                wait.cancel()
            await asyncio.gather(serving, known, return_exceptions=True)
        return self._consensus.leadership.value.address


def _is_elsewhere(now: Leadership) -> bool:
    return bool(now.address)


async def _served(handler: Any, requests: AsyncIterator[bytes], context: Any) -> Any:
    """Serve a call, that came in as bytes, with a handler of any shape."""
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
                yield encode(answer)
    else:
        behaviour = handler.stream_unary or handler.unary_unary
        yield encode(await behaviour(given, context))
