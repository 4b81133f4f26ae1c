"""A network that drops, repeats, delays and overtakes, and may be cut in either direction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from manager.raft.messages import Message, MessageKind

if TYPE_CHECKING:
    from tests.simulation.world import World


class Network:
    """Links are named (from, to). Times are virtual microseconds."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.chance = world.chance
        self.cut: set[tuple[int, int]] = set()
        self.drop = 0.0
        self.repeat = 0.0
        self.late = 0.0
        """How often a message takes a long time, and is overtaken by many."""

    def send(self, message: Message) -> None:
        world, random = self.world, self.chance.random
        lost = (message.sender, message.to) in self.cut or random() < self.drop
        if message.kind is MessageKind.SNAPSHOT:
            self._stream(message, lost=lost)
            return
        if lost:
            if message.kind is MessageKind.APPEND and random() < 0.2:
                world.later(self._delay(), world.report_unreachable, message)
            return
        world.later(self._delay(), world.deliver, message)
        if random() < self.repeat:
            world.later(self._delay(), world.deliver, message)

    def heal(self) -> None:
        self.cut.clear()
        self.drop = self.repeat = self.late = 0.0

    def _delay(self) -> int:
        random = self.chance.random
        if random() < self.late:
            return int(random() * 900_000)
        return 500 + int(random() * 4_000)

    def _stream(self, message: Message, *, lost: bool) -> None:
        """A snapshot's sender learns what became of it, late when it was lost."""
        world = self.world
        if lost:
            world.later(500_000, world.report_snapshot, (message, False))
            return
        delay = 20_000 + self._delay()
        world.later(delay, world.deliver, message)
        world.later(delay + self._delay(), world.report_snapshot, (message, True))
