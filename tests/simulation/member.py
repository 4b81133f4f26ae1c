"""One node: the real core, and a driver that does its duties on a simulated disk.

The driver is what a production driver has to be: one write under way at a time, what needs no
disk leaves meanwhile, promises and answers leave after the sync.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from manager.raft.confchange import Membership
from manager.raft.config import Config
from manager.raft.core import Core
from manager.raft.entries import KIND_CONF_CHANGE, KIND_EMPTY, Entry, Role, Snapshot
from manager.raft.messages import Message
from manager.raft.node import Raft, Start
from manager.raft.ready import Ready
from shoal.errors import FailedPrecondition
from tests.simulation.disk import Disk, Write

if TYPE_CHECKING:
    from tests.simulation.world import World

SNAPSHOT_ENTRIES = 60
KEPT_ENTRIES = 20


class Member:
    """A machine; `raft` is its process, replaced at every start."""

    raft: Raft
    core: Core

    def __init__(self, world: World, node_id: int, snapshot: Snapshot) -> None:
        self.world = world
        self.id = node_id
        self.disk = Disk(snapshot)
        self.incarnation = 0
        self.is_up = False
        self.is_paused = False
        self.inbox: list[Message] = []
        self.tick_period = 100_000
        self.disk_delay = 300
        self.writing: Ready | None = None
        self.state = 0
        self.seen_term = 0
        self.seen_commit = 0
        self.led_term = 0
        self.is_retired = False
        self.start()

    def __repr__(self) -> str:
        return f"node {self.id} (term {self.core.term}, {self.core.role.name})"

    @property
    def is_running(self) -> bool:
        return self.is_up and not self.is_paused

    @property
    def leads(self) -> bool:
        return self.is_running and self.core.role is Role.LEADER

    @property
    def membership(self) -> Membership:
        return self.core.membership

    def start(self) -> None:
        """The process starts on what its disk holds."""
        world, disk = self.world, self.disk
        config = Config(
            id=self.id,
            seed=world.chance.getrandbits(60),
            election_ticks=world.election_ticks,
            heartbeat_ticks=1,
            message_bytes_max=world.message_bytes_max,
            inflight_bytes_max=4 * world.message_bytes_max,
            inflight_messages_max=world.inflight_messages_max,
            uncommitted_bytes_max=2_000,
        )
        snapshot = disk.snapshot
        start = Start(
            storage=disk.storage(),
            hard_state=disk.hard_state,
            conf_state=snapshot.conf_state,
            applied=snapshot.index,
        )
        self.raft = Raft(config, start)
        self.core = self.raft.core
        self.state = int(snapshot.data or b"0")
        self.is_up, self.is_paused = True, False
        self.writing = None
        self.inbox.clear()
        self.incarnation += 1
        self.seen_term, self.led_term = disk.hard_state.term, 0
        self.seen_commit = self.core.log.committed
        world.later(world.chance.randrange(self.tick_period), self._tick, self.incarnation)

    def crash(self) -> None:
        """Power is cut."""
        self.is_up = False
        self.incarnation += 1
        self.disk.crash(self.world.chance)

    def resume(self) -> None:
        """The paused process goes on with what waits for it."""
        if not (self.is_up and self.is_paused):
            return
        self.is_paused = False
        if self.writing is not None:
            self.world.later(self.disk_delay, self._written, self.incarnation)
        waiting, self.inbox = self.inbox, []
        for message in waiting:
            self.receive(message)

    def receive(self, message: Message) -> None:
        if not self.is_up:
            return
        if self.is_paused:
            if len(self.inbox) < 200:
                self.inbox.append(message)
            return
        self.raft.step(message)
        self.pump()

    def pump(self) -> None:
        """Do what the core wants done, up to the next sync."""
        raft = self.raft
        while self.writing is None and raft.has_ready():
            ready = raft.ready()
            # Before anything is applied: a commit counts by the membership of its moment.
            self.world.checker.commits(self)
            for message in ready.messages:
                self.world.send(self, message)
            for read in ready.read_states:
                self.world.read_done(self, read)
            self._apply(ready)
            if ready.entries:
                self.world.checker.keeps(self, ready.entries)
            if ready.entries or ready.hard_state is not None or ready.snapshot is not None:
                snapshot = ready.snapshot
                self.disk.write(
                    Write(ready.entries, ready.hard_state, snapshot, replaces=snapshot is not None)
                )
            if ready.must_sync:
                self.writing = ready
                delay = int(self.disk_delay * (0.5 + self.world.chance.random()))
                self.world.later(delay, self._written, self.incarnation)
            else:
                self._finish(ready)
        if self.writing is not None:
            for message in raft.take_messages():
                self.world.send(self, message)
        self.world.checker.after_step(self)

    def _tick(self, incarnation: int) -> None:
        if incarnation != self.incarnation:
            return
        self.world.later(self.tick_period, self._tick, incarnation)
        if self.is_paused:
            return
        self.raft.tick()
        self.pump()

    def _written(self, incarnation: int) -> None:
        ready = self.writing
        if incarnation != self.incarnation or self.is_paused or ready is None:
            return
        self.sync()
        self.writing = None
        self._finish(ready)
        self.pump()

    def sync(self) -> None:
        self.disk.sync()

    def _finish(self, ready: Ready) -> None:
        for message in ready.messages_after_sync:
            self.world.send(self, message)
        if ready.snapshot is not None:
            self.state = int(ready.snapshot.data or b"0")
            self.world.checker.applied(self, ready.snapshot.index, self.state)
        self.raft.advance(ready)
        if self.raft.applied - self.core.log.storage.snapshot.index >= SNAPSHOT_ENTRIES:
            self._snapshot()

    def _apply(self, ready: Ready) -> None:
        for entry in ready.committed_entries:
            self._apply_entry(entry)

    def _apply_entry(self, entry: Entry) -> None:
        if entry.kind == KIND_CONF_CHANGE:
            before = self.membership.nodes
            self.raft.apply_conf_change(entry.data)
            if self.leads:
                self.world.removed(before - self.membership.nodes)
        if entry.kind != KIND_EMPTY:
            self.state = zlib.crc32(entry.data, self.state)
        self.world.checker.applied(self, entry.index, self.state)
        self.world.applied(self, entry)

    def _snapshot(self) -> None:
        """Keep the state and forget the log behind it. The file is durable before its mark."""
        try:
            snapshot = self.raft.snapshot_now(str(self.state).encode())
        except FailedPrecondition:
            return
        self.disk.write(Write(snapshot=snapshot))
        self.sync()
        self.raft.offer_snapshot(snapshot)
        keep_from = snapshot.index - KEPT_ENTRIES
        if keep_from > 0:
            self.raft.compact(keep_from)
            self.disk.release(keep_from)
