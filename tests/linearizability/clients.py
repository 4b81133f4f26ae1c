"""Clients that write and read a few names at once, and the record of what they saw.

Each client does one thing at a time. A client whose call has an unknown outcome reads until it is
answered before it writes again: otherwise a dead cluster would fill the history with calls that
may or may not have happened, and the search for an order with possibilities.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

import msgspec

from tests.linearizability.history import Call, Item, Kind, Operation, Outcome
from tests.linearizability.service import Service, Unknown

PAUSE_AFTER_FAILURE_S = 0.1
KEEP = "keep"

_KINDS = (Kind.CREATE, Kind.UPDATE, Kind.REMOVE, Kind.GET, Kind.LIST)
_WEIGHTS = (20, 30, 10, 30, 10)


class Workload(msgspec.Struct, frozen=True):
    """How much is going on. names: in each group; pause_s: longest rest between two calls.

    calls_per_epoch: of each client; then it goes on to new names. So a long run is many short
    histories, and takes no longer to judge for each second it ran.
    """

    clients: int = 8
    groups: int = 3
    names: int = 2
    pause_s: float = 0.02
    keep_percent: int = 10
    calls_per_epoch: int = 80


class Recorder:
    """The history so far."""

    def __init__(self) -> None:
        self.history: list[Operation] = []
        self.failed_reads = 0

    async def call(self, client: int, service: Service, call: Call) -> Outcome | None:
        """Call and record. Result: None when the outcome is unknown."""
        called_ns = time.monotonic_ns()
        try:
            outcome = await service.call(call)
        except Unknown:
            if call.kind in (Kind.GET, Kind.LIST):
                self.failed_reads += 1
            else:
                self.history.append(Operation(client, call, called_ns))
            return None
        except asyncio.CancelledError:
            self.history.append(Operation(client, call, called_ns))
            raise
        self.history.append(Operation(client, call, called_ns, outcome, time.monotonic_ns()))
        return outcome


class Client:
    """One client with its own generator, so that a seed repeats its choices."""

    def __init__(
        self, number: int, services: Sequence[Service], recorder: Recorder, workload: Workload,
        *, seed: int,
    ) -> None:  # fmt: skip
        self.number = number
        self._services = services
        self._recorder = recorder
        self._workload = workload
        self._random = random.Random(f"{seed} {number}")
        self._last: dict[str, Item] = {}
        self._writes = 0
        self._calls = 0
        self._must_read = False

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Go on until told to stop."""
        while not stopping():
            service = self._random.choice(self._services)
            call = self._next()
            outcome = await self._recorder.call(self.number, service, call)
            if outcome is None:
                self._must_read = True
                await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
                continue
            if call.kind in (Kind.GET, Kind.LIST):
                self._must_read = False
            for item in outcome.items:
                self._last[item.name] = item
            await asyncio.sleep(self._random.random() * self._workload.pause_s)

    def _next(self) -> Call:
        chosen, workload = self._random, self._workload
        self._calls += 1
        epoch = self._calls // workload.calls_per_epoch
        group = f"g{epoch}x{chosen.randrange(workload.groups)}"
        name = f"{group}-{chosen.randrange(workload.names)}"
        if self._must_read:
            return Call(Kind.GET, group, name)
        if chosen.randrange(100) < workload.keep_percent:
            kept = f"{KEEP}-{self.number}-{self._writes}"
            return Call(Kind.CREATE, kept, kept, self._value())
        kind = chosen.choices(_KINDS, _WEIGHTS)[0]
        if kind is Kind.UPDATE and name not in self._last:
            kind = Kind.CREATE
        match kind:
            case Kind.CREATE:
                return Call(kind, group, name, self._value())
            case Kind.UPDATE:
                return Call(kind, group, name, self._value(), self._last[name].version)
            case Kind.LIST:
                return Call(kind, group)
            case _:
                return Call(kind, group, name)

    def _value(self) -> str:
        self._writes += 1
        return f"{self.number}.{self._writes}"


async def read_all(services: Sequence[Service], recorder: Recorder, *, deadline_s: float) -> None:
    """Read every group once over every way, as part of the history; tries until the deadline.

    Raises: TimeoutError: a cluster that was healed must answer.
    """
    groups = sorted({operation.call.group for operation in recorder.history})
    async with asyncio.timeout(deadline_s):
        for index, service in enumerate(services):
            for group in groups:
                if group.startswith(f"{KEEP}-"):
                    continue
                while await recorder.call(-1 - index, service, Call(Kind.LIST, group)) is None:
                    await asyncio.sleep(PAUSE_AFTER_FAILURE_S)
