"""What the driver asks of the network, and what the network may ask of the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from manager.consensus.roster import Roster
from manager.raft.messages import Message
from manager.storage.snapshot_dir import SnapshotFile
from manager.storage.snapshot_file import SnapshotRecord
from shoal.errors import FailedPrecondition


class RemovedFromCluster(FailedPrecondition):
    """The others removed this manager: its log is of no use any more, nor is its raft id."""


class Transport(Protocol):
    """Carries messages to the other members. Losing some is allowed, changing them is not."""

    def attach(self, receiver: Receiver) -> None:
        """Deliver to `receiver` from now on."""
        ...

    def send(self, messages: Sequence[Message]) -> None:
        """Queue messages, each to the member it names; never waits."""
        ...

    def send_snapshot(self, message: Message) -> None:
        """Send the snapshot a SNAPSHOT message names, and report its fate to the receiver."""
        ...

    def follow(self, roster: Roster) -> None:
        """These are the members now, and these were removed."""
        ...


class Receiver(Protocol):
    """The side of the driver that the network sees."""

    @property
    def roster(self) -> Roster:
        """Members as this manager knows them."""
        ...

    def deliver(self, messages: Sequence[Message]) -> None:
        """Messages from a member whose identity was checked."""
        ...

    def report_unreachable(self, raft_id: int) -> None:
        """Messages to a member were probably lost."""
        ...

    def report_snapshot(self, raft_id: int, *, ok: bool) -> None:
        """The snapshot for a member arrived, or did not."""
        ...

    def report_removed(self, raft_id: int, reason: str) -> None:
        """A member says that this manager was removed from the cluster."""
        ...

    def open_snapshot(self, index: int, term: int) -> SnapshotFile | None:
        """A snapshot of this member, verified; None when it is gone. Blocking."""
        ...

    async def receive_snapshot(
        self, message: Message, membership: bytes, records: Iterator[SnapshotRecord]
    ) -> None:
        """Keep a snapshot and hand it to Raft. `records` blocks: it is read in a thread.

        Raises: what `records` raises, SwarmError from the disk; then nothing was kept.
        """
        ...
