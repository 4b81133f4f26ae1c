"""Raft members in one process: a network in memory, real logs on disk."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from manager.consensus.changes import MembershipChanges
from manager.consensus.driver import RaftDriver
from manager.consensus.interfaces import Receiver
from manager.consensus.recovery import Place, recover
from manager.consensus.roster import Member, Roster
from manager.raft.messages import Message
from manager.storage.member import Opening
from manager.store.store import Store
from shoal.clock import SystemClock
from shoal.model.objects import StoreEntry
from shoal.wire.objects import object_to_bytes

CLUSTER = "c" * 25
SEGMENT_BYTES = 1 << 20


class MemoryNetwork:
    """Delivers in the next turn of the loop; members and directions can be cut off."""

    def __init__(self) -> None:
        self.receivers: dict[int, Receiver] = {}
        self.cut: set[int] = set()
        self.sent = 0
        self.drop: Callable[[Message], bool] = lambda message: False

    def connect(self) -> MemoryTransport:
        return MemoryTransport(self)

    def reaches(self, sender: int, to: int) -> bool:
        return sender not in self.cut and to not in self.cut and to in self.receivers


class MemoryTransport:
    """Implements `Transport`."""

    def __init__(self, network: MemoryNetwork) -> None:
        self._network = network
        self._receiver: Receiver | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.id = 0

    def attach(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.id = receiver.raft.id  # type: ignore[attr-defined]
        self._network.receivers[self.id] = receiver

    def detach(self) -> None:
        self._network.receivers.pop(self.id, None)

    def follow(self, roster: Roster) -> None:
        pass

    def send(self, messages: Sequence[Message]) -> None:
        loop = asyncio.get_running_loop()
        by_member: dict[int, list[Message]] = {}
        for message in messages:
            self._network.sent += 1
            if not self._network.drop(message):
                by_member.setdefault(message.to, []).append(message)
        for to, group in by_member.items():
            loop.call_soon(self._deliver, to, group)

    def send_snapshot(self, message: Message) -> None:
        task = asyncio.create_task(self._snapshot(message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _deliver(self, to: int, group: list[Message]) -> None:
        if self._network.reaches(self.id, to):
            self._network.receivers[to].deliver(group)
        elif self._receiver is not None:
            self._receiver.report_unreachable(to)

    async def _snapshot(self, message: Message) -> None:
        assert self._receiver is not None
        assert message.snapshot is not None
        found = await asyncio.to_thread(
            self._receiver.open_snapshot, message.snapshot.index, message.snapshot.term
        )
        ok = found is not None and self._network.reaches(self.id, message.to)
        if found is not None and ok:
            await self._network.receivers[message.to].receive_snapshot(
                message, found.metadata, found.records()
            )
        self._receiver.report_snapshot(message.to, ok=ok)


class MemberRig:
    """One member: a directory and, while it runs, a driver and its store."""

    def __init__(self, network: MemoryNetwork, directory: Path, name: str, **options) -> None:
        self.network = network
        opening = Opening(CLUSTER, segment_bytes=SEGMENT_BYTES)
        self.place = Place(directory, opening, f"node{name}", f"{name}:2377")
        self.options = options
        self.driver: RaftDriver | None = None

    async def start(self, first_entry: StoreEntry | None = None) -> None:
        recovery = recover(self.place, first_entry)
        self.store = Store(recovery.tables, SystemClock(), recovery.history)
        self.transport = self.network.connect()
        self.driver = RaftDriver(recovery, self.store, self.transport, **self.options)
        self.store.attach(self.driver)
        self.changes = MembershipChanges(self.driver)
        self.me = recovery.me
        await self.driver.__aenter__()

    @property
    def running(self) -> RaftDriver:
        assert self.driver is not None
        return self.driver

    async def stop(self) -> None:
        if self.driver is not None:
            driver, self.driver = self.driver, None
            self.transport.detach()
            await driver.__aexit__(None, None, None)

    @property
    def leads(self) -> bool:
        return self.driver is not None and self.driver.leading.value.ready

    def member(self) -> Member:
        return self.me


def digest(store: Store) -> str:
    """Equal states give equal digests."""
    rows = sorted((type(row).__name__, row.id, object_to_bytes(row)) for row in store.rows())
    return hashlib.sha256(repr(rows).encode()).hexdigest()
