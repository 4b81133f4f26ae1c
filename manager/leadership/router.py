"""Calls for the leader: served here while this manager leads, passed on as bytes otherwise.

Invariants: a call is passed on at most once (the second manager refuses it, the first asks the
leader of by then); who called travels along, and only managers are believed about it. While nobody
leads a call is held, for as long as a leader may still be found and its deadline allows; a bounded
number of them. It is made again by the rules of `repeating`, never when it may have been begun.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import grpc
import structlog
from typing_extensions import override

from manager.leadership.calls import Call, Dial, Relayed, Route, Served
from manager.leadership.interfaces import Consensus, Leadership, NoLeader
from manager.leadership.metrics import CALLS_HELD, CALLS_REPEATED, CALLS_UNKNOWN
from manager.leadership.repeating import Requests, may_repeat, told
from manager.leadership.scope import Scope
from shoal.aio.backoff import Backoff
from shoal.aio.cancel import raise_if_cancelled
from shoal.errors import NotBegun, NotLeader, SwarmError, Unavailable
from shoal.security.forwarded import render_caller
from shoal.security.peer import Caller, current_caller
from shoal.wire.relay import Attempt

HOLD_S = 12.0
"""How long a call is held while a leader may still be found: several elections, or the lease of a
leader in etcd."""
HOLD_FRACTION = 0.9
"""Of the time that a call has left: who waited in vain is told why before the deadline."""
LEADER_WAIT_S = 3.0
"""Longer than an election of 1 to 2 s: then a call is refused if there is more amiss than that."""
LOOK_PERIOD_S = 0.5
"""How often it is looked whether there is, after that."""
PAUSE_MAX_S = 0.5
"""Between attempts to reach one leader."""
HELD_MAX = 4096
"""Calls that are held at once; more are refused."""
ELECTING = NoLeader(
    "The cluster does not have a leader. It's possible that too few of the managers are online."
    " Make sure more than half of the managers are online.",
    is_passing=True,
)
ELSEWHERE = "this manager does not lead the cluster: try again"
CHANGED = "the leader of the cluster has changed: try again"

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


class LeaderRouter(grpc.GenericRpcHandler):
    """The handler of every service that only a leader serves."""

    def __init__(
        self,
        services: Iterable[str],
        consensus: Consensus,
        dial: Dial,
        *,
        why_no_leader: Callable[[], NoLeader] = lambda: ELECTING,
        only_shows: Callable[[str], bool] = lambda method: False,
    ) -> None:
        """services: full names, `shoal.api.v1.Control`. only_shows: the method changes nothing."""
        self._why_no_leader = why_no_leader
        self._only_shows = only_shows
        self._services = frozenset(services)
        self._consensus = consensus
        self._dial = dial
        self._methods: Mapping[str, Any] | None = None
        self._serving = asyncio.Event()
        self._relays = Scope()
        self._held = 0

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
            relays.end(NotLeader(CHANGED))

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
        caller, given = current_caller(), Requests(requests)
        until_s, backoff = _patience_ends_s(context), Backoff(max_s=PAUSE_MAX_S)
        try:
            while True:
                await self._wait_for_leader(until_s, stay_here=caller.forwarded)
                seen = self._consensus.leadership.value
                call = self._call(method, caller, context, until_s)
                try:
                    async with aclosing(call.answers(given.each())) as answers:
                        async for answer in answers:
                            yield answer
                except (SwarmError, grpc.aio.AioRpcError) as error:
                    is_late = asyncio.get_running_loop().time() >= until_s
                    await self._consider(method, call, error, again=given.are_whole and not is_late)
                else:
                    return
                await self._pause(backoff.next_s(0), seen)
        finally:
            await given.close()

    def _call(self, method: str, caller: Caller, context: Any, until_s: float) -> Call:
        """One try to make a call, at whoever leads at this moment."""
        if self._methods is not None:
            return Served(self._methods[method], context)
        address = self._consensus.leadership.value.address
        if caller.forwarded:
            raise NotBegun(ELSEWHERE)
        route = Route(self._dial, address, until_s)
        return Relayed(Attempt(route, method, context, (render_caller(caller),)), self._relays)

    async def _consider(
        self, method: str, call: Call, error: SwarmError | grpc.aio.AioRpcError, *, again: bool
    ) -> None:
        """Return if a call that failed is to be made again. Otherwise it ends, or this raises.

        again: whether it can be.
        """
        failure, only_shows = call.failure(error), self._only_shows(method)
        if again and may_repeat(failure, only_shows=only_shows):
            raise_if_cancelled()
            CALLS_REPEATED.inc()
            return
        answer = told(failure, only_shows=only_shows)
        if answer is not failure.error:
            CALLS_UNKNOWN.inc()
        elif not failure.lost:
            await call.end_as(error)
        raise answer

    async def _pause(self, pause_s: float, seen: Leadership) -> None:
        """Wait a little before the next attempt, not at all when there is another leader."""
        with self._held_place(), suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._consensus.leadership.until(lambda now: now != seen)

    async def _wait_for_leader(self, until_s: float, *, stay_here: bool) -> None:
        """Wait until this manager serves, or knows who does.

        stay_here: the call was passed on to this manager, which does not pass it on again.
        Raises: Unavailable, NotBegun.
        """
        loop, leadership = asyncio.get_running_loop(), self._consensus.leadership
        early_s = min(until_s, loop.time() + LEADER_WAIT_S)
        while not self._serving.is_set() and not leadership.value.address:
            now_s, why = loop.time(), self._why_no_leader()
            if stay_here and now_s >= early_s:
                raise NotBegun(ELSEWHERE)
            if now_s >= (until_s if why.is_passing else early_s):
                raise Unavailable(why.reason)
            with self._held_place():
                await self._wait_known(min(LOOK_PERIOD_S, until_s - now_s))

    async def _wait_known(self, most_s: float) -> None:
        serving = asyncio.ensure_future(self._serving.wait())
        known = asyncio.ensure_future(self._consensus.leadership.until(_is_elsewhere))
        try:
            await asyncio.wait(
                {serving, known}, timeout=most_s, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            for wait in (serving, known):
                wait.cancel()
            await asyncio.gather(serving, known, return_exceptions=True)

    @contextmanager
    def _held_place(self) -> Iterator[None]:
        if self._held >= HELD_MAX:
            raise Unavailable(f"{HELD_MAX} calls wait for a leader already: try again later")
        self._held += 1
        CALLS_HELD.set(self._held)
        try:
            yield
        finally:
            self._held -= 1
            CALLS_HELD.set(self._held)


def _is_elsewhere(now: Leadership) -> bool:
    return bool(now.address)


def _patience_ends_s(context: Any) -> float:
    """Until when a call is held, on the loop's clock."""
    left_s: float | None = context.time_remaining()
    hold_s = HOLD_S if left_s is None else min(HOLD_S, left_s * HOLD_FRACTION)
    return asyncio.get_running_loop().time() + hold_s
