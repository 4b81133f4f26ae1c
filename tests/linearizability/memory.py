"""A correct cluster in memory, with delays before and after each effect, to test the test."""

from __future__ import annotations

import asyncio
import random

from tests.linearizability.history import Call, Item, Kind, Outcome, Result
from tests.linearizability.service import Unknown


class MemoryService:
    """Linearizable by construction: every effect happens in one turn of the loop."""

    def __init__(self, *, seed: int, lost_answer_percent: int = 3, delay_s: float = 0.004) -> None:
        self.items: dict[str, Item] = {}
        self.version = 10
        self._random = random.Random(seed)
        self._lost_answer_percent = lost_answer_percent
        self._delay_s = delay_s

    async def call(self, call: Call) -> Outcome:
        """See `Service`. An answer may get lost before or after the effect, or overtake it."""
        await asyncio.sleep(self._random.random() * self._delay_s)
        lost = self._random.randrange(100) < self._lost_answer_percent
        if lost and self._random.randrange(2):
            if self._random.randrange(2):
                asyncio.get_running_loop().call_later(self._delay_s * 5, self.effect, call)
            raise Unknown("lost on the way there")
        outcome = self.effect(call)
        await asyncio.sleep(self._random.random() * self._delay_s)
        if lost:
            raise Unknown("lost on the way back")
        return outcome

    def effect(self, call: Call) -> Outcome:
        """Answer from the state, and change it."""
        item = self.items.get(call.name)
        if call.kind is Kind.LIST:
            prefix = f"{call.group}-"
            shown = [found for name, found in self.items.items() if name.startswith(prefix)]
            return Outcome(Result.OK, tuple(shown))
        if call.kind is Kind.CREATE:
            return Outcome(Result.EXISTS) if item else self._write(call)
        if item is None:
            return Outcome(Result.MISSING)
        if call.kind is Kind.GET:
            return Outcome(Result.OK, (item,))
        if call.kind is Kind.REMOVE:
            self.version += 1
            del self.items[call.name]
            return Outcome(Result.OK)
        return self._write(call) if item.version == call.version else Outcome(Result.CONFLICT)

    def _write(self, call: Call) -> Outcome:
        self.version += 1
        self.items[call.name] = Item(call.name, call.value, self.version)
        return Outcome(Result.OK, (self.items[call.name],))
