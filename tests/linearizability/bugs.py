"""Ways to the cluster that are broken on purpose: the checks must find each of them.

They stand between client and server in the test; nothing of the product knows them. Each shows
what clients would see of a real bug: reads from a manager that lags behind or no longer leads,
an acknowledged write that no log holds, a create that is answered twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import msgspec

from tests.linearizability.history import Call, Item, Kind, Outcome, Result
from tests.linearizability.service import Service, Unknown
from tests.linearizability.watching import Session


class LocalReads:
    """Reads come from a copy that is refreshed now and then, as on a follower without ReadIndex."""

    def __init__(self, service: Service, *, lag_s: float = 0.25) -> None:
        self._service = service
        self._lag_s = lag_s
        self._copies: dict[str, tuple[float, Outcome]] = {}

    async def call(self, call: Call) -> Outcome:
        """See `Service`."""
        if call.kind not in (Kind.GET, Kind.LIST):
            return await self._service.call(call)
        listed = await self._copy(call.group)
        if call.kind is Kind.LIST:
            return listed
        found = tuple(item for item in listed.items if item.name == call.name)
        return Outcome(Result.OK, found) if found else Outcome(Result.MISSING)

    async def _copy(self, group: str) -> Outcome:
        taken_s, outcome = self._copies.get(group, (0.0, None))
        if outcome is None or time.monotonic() - taken_s > self._lag_s:
            taken_s = time.monotonic()
            outcome = await self._service.call(Call(Kind.LIST, group))
            self._copies[group] = (taken_s, outcome)
        return outcome


class LostWrite:
    """The tenth create or update that is acknowledged is taken back behind the client's back."""

    def __init__(self, service: Service, *, nth: int = 10) -> None:
        self._service = service
        self._left = nth

    async def call(self, call: Call) -> Outcome:
        """See `Service`."""
        outcome = await self._service.call(call)
        if outcome.result is Result.OK and call.kind in (Kind.CREATE, Kind.UPDATE):
            self._left -= 1
            if self._left == 0:
                await self._undo(call)
        return outcome

    async def _undo(self, call: Call) -> None:
        undone = Call(Kind.REMOVE, call.group, call.name)
        while True:
            try:
                await self._service.call(undone)
                return
            except Unknown:
                await asyncio.sleep(0.05)


class DoubleCreate:
    """Who creates what exists is told that he made it: uniqueness checked on a stale view."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def call(self, call: Call) -> Outcome:
        """See `Service`."""
        outcome = await self._service.call(call)
        if call.kind is not Kind.CREATE or outcome.result is not Result.EXISTS:
            return outcome
        found = await self._service.call(Call(Kind.GET, call.group, call.name))
        if found.result is not Result.OK:
            return outcome
        (item,) = found.items
        return Outcome(Result.OK, (Item(call.name, call.value, item.version + 1),))


class RepeatedWrite:
    """An update is sent again after its answer got lost, and the second answer is believed."""

    def __init__(self, service: Service, *, every: int = 5) -> None:
        self._service = service
        self._every = every
        self._count = 0

    async def call(self, call: Call) -> Outcome:
        """See `Service`."""
        outcome = await self._service.call(call)
        if call.kind is Kind.CREATE and outcome.result is Result.OK:
            self._count += 1
            if self._count % self._every == 0:
                return await self._service.call(msgspec.structs.replace(call))
        return outcome


def lose_events(sessions: Sequence[Session]) -> list[Session]:
    """Watches as they would be if every twentieth commit came too late for its watcher."""
    return [
        msgspec.structs.replace(
            session,
            messages=tuple(m for n, m in enumerate(session.messages) if n % 20 != 10),
        )
        for session in sessions
    ]


LOST_EVENT = "lost-event"
BUGS: dict[str, Callable[[Service], Service]] = {
    "local-reads": LocalReads,
    "lost-write": LostWrite,
    "double-create": DoubleCreate,
    "repeated-write": RepeatedWrite,
}
