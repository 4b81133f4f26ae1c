"""Keeps this node's keys for encrypted networks at the generation that the managers ask for.

Order: a key is durable before the data plane uses it, and in use here before the managers are told
of it, so that a peer never calls by a key that nobody answers to. What fails is tried again. Peers
are moved to newer keys one by one, as they prove to have them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog

from shoal.aio.signal import Signal
from shoal.errors import SwarmError
from shoal.model.types import NetworkKey
from worker.network.keys import KeyFile, PrivateKeys

TURN_S = 1.0
"""How soon what failed is tried again, and how often peers are looked at that may be moved."""
PublicKeys = tuple[NetworkKey, ...]

_log = structlog.get_logger()


class KeyedPlane(Protocol):
    """What this needs of the data plane."""

    async def use_keys(self, keys: PrivateKeys) -> None:
        """Keys of encrypted networks from now on."""
        ...

    async def settle(self) -> bool:
        """Move peers to newer keys. Result: whether all are."""
        ...


class NetworkKeyKeeper:
    """One per agent. A node that cannot encrypt has no keys, and gets none."""

    def __init__(self, file: KeyFile, keys: PrivateKeys, plane: KeyedPlane) -> None:
        """keys: those in force in the plane, as the file holds them; empty: it cannot encrypt."""
        self._file = file
        self._keys = keys
        self._plane = plane
        self._generation = max(keys.by_generation, default=0)
        self.problem = ""
        """Why keys are not in force; empty when they are."""
        self._turn = Signal()
        self._changed = Signal()

    @property
    def public(self) -> PublicKeys:
        """What the managers may know."""
        return tuple(NetworkKey(generation, key) for generation, key in self._keys.public.items())

    def want(self, generation: int) -> None:
        """The managers ask for a key of this generation."""
        if self._keys.by_generation and generation != self._generation:
            self._generation = generation
            self._turn.set()

    def look(self) -> None:
        """The data plane has changed: there may be peers to move."""
        self._turn.set()

    async def run(self) -> None:
        """Make keys, and move peers to them, for ever."""
        is_done = False
        while True:
            await self._turn.wait(None if is_done else TURN_S)
            try:
                await self._move()
                is_done = await self._plane.settle()
                self.problem = ""
            except (SwarmError, OSError) as error:
                is_done = False
                self.problem = f"keys of encrypted networks are not in force: {error}"
                _log.error("network_keys.not_in_force", reason=str(error))

    async def report(
        self, known: PublicKeys, send: Callable[[PublicKeys], Awaitable[None]]
    ) -> None:
        """Tell a manager of keys that differ from what it knows. Raises: what `send` raises."""
        while True:
            current = self.public
            if current != known:
                await send(current)
                known = current
            await self._changed.wait()

    async def _move(self) -> None:
        keys = self._keys
        if not keys.by_generation or self._generation == max(keys.by_generation):
            return
        moved = await asyncio.to_thread(self._file.move, keys, self._generation)
        await self._plane.use_keys(moved)
        self._keys = moved
        self._changed.set()
        _log.info("network_keys.moved", generation=self._generation)
