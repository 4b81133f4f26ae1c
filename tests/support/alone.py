"""A cluster of one manager in this process: a log on disk, no network."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from manager.consensus.driver import RaftDriver
from manager.consensus.interfaces import Receiver
from manager.consensus.recovery import Place, Recovery, recover
from manager.consensus.roster import Roster
from manager.raft.messages import Message
from manager.storage.files import FileOps
from manager.storage.member import Opening
from manager.store.store import Store
from shoal.clock import Clock, SystemClock
from shoal.model.objects import StoreEntry

CLUSTER = "c" * 25
SEGMENT_BYTES = 1 << 20


class NoTransport:
    """Nobody else is there."""

    def attach(self, receiver: Receiver) -> None:
        pass

    def send(self, messages: Sequence[Message]) -> None:
        assert not messages

    def send_snapshot(self, message: Message) -> None:
        raise AssertionError(message)

    def follow(self, roster: Roster) -> None:
        pass


def recovered(directory: Path, *, files: FileOps | None = None, **opening) -> Recovery:
    opening.setdefault("segment_bytes", SEGMENT_BYTES)
    if files is not None:
        opening["files"] = files
    place = Place(directory, Opening(CLUSTER, **opening), "node", "127.0.0.1:2377")
    return recover(place, StoreEntry())


@asynccontextmanager
async def alone(
    directory: Path,
    *,
    clock: Clock | None = None,
    files: FileOps | None = None,
    segment_bytes: int = SEGMENT_BYTES,
    **options,
) -> AsyncIterator[tuple[Store, RaftDriver]]:
    """The store and the driver of a manager that leads."""
    recovery = recovered(directory, files=files, segment_bytes=segment_bytes)
    store = Store(recovery.tables, clock or SystemClock(), recovery.history)
    driver = RaftDriver(recovery, store, NoTransport(), **options)
    store.attach(driver)
    async with driver:
        await driver.leading.until(lambda now: now.ready)
        yield store, driver


async def rows_after_restart(directory: Path):
    """Every object by id, as a manager finds it that starts on the directory."""
    async with alone(directory) as (store, _):
        return {row.id: row for row in store.rows()}
