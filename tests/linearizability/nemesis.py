"""What befalls the managers while clients work: chosen from a seed, one trouble at a time.

Every trouble is undone before the next one, so that a majority can work again; between them the
cluster is whole for a while. With one manager nobody else could go on, so it is only killed.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec

from tests.linearizability.site import Site


class Climate(msgspec.Struct, frozen=True):
    """How bad it is. Seconds, each a range to draw from."""

    calm_s: tuple[float, float] = (0.8, 2.0)
    trouble_s: tuple[float, float] = (0.5, 4.0)


class Nemesis:
    """`run` until told to stop; `done` counts what was done."""

    def __init__(
        self,
        site: Site,
        leader: Callable[[], Awaitable[str]],
        *,
        seed: int,
        climate: Climate | None = None,
    ) -> None:
        """leader: the name of the node that leads, "" when nobody knows."""
        self.done: Counter[str] = Counter()
        self._site = site
        self._leader = leader
        self._random = random.Random(f"nemesis {seed}")
        self._climate = climate or Climate()
        self._single = len(site.nodes) == 1

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Make trouble and mend it."""
        troubles = [self._kill_process, self._kill_node]
        if not self._single:
            troubles += [self._pause, self._partition]
        turn = 0
        while not stopping():
            if self._random.randrange(2):
                await self._led(stopping)
            await asyncio.sleep(self._random.uniform(*self._climate.calm_s))
            trouble = troubles[turn % len(troubles)]
            turn += 1
            node = await self._victim()
            self.done[trouble.__name__.strip("_")] += 1
            await trouble(node)

    async def _led(self, stopping: Callable[[], bool]) -> None:
        """Wait until somebody leads: on a busy machine that takes longer than the calm."""
        while not stopping() and not await self._leader():
            await asyncio.sleep(0.05)

    async def _victim(self) -> str:
        """The leader every other time: that is where it hurts."""
        drawn = self._random.choice(self._site.nodes)
        if self._single or self._random.randrange(2):
            return drawn
        return await self._leader() or drawn

    async def _last(self) -> None:
        await asyncio.sleep(self._random.uniform(*self._climate.trouble_s))

    async def _kill_process(self, node: str) -> None:
        self._site.kill_manager(node)
        await asyncio.sleep(0)

    async def _kill_node(self, node: str) -> None:
        hard = ["--hard"] if self._random.randrange(2) else ["--helpers"]
        await self._site.lab("kill", node, *hard)
        if not self._single:
            await self._last()
        await self._site.lab("start", node)

    async def _pause(self, node: str) -> None:
        await self._site.lab("pause", node)
        await self._last()
        await self._site.lab("resume", node)

    async def _partition(self, node: str) -> None:
        await self._site.lab("partition", node)
        await self._last()
        await self._site.lab("heal", node)
