"""A disk that fills up at any moment of a manager's life: at each write, new file and rename.

A life is counted first; then it is lived again and again, each time with one operation more before
the space ends. What was acknowledged must be there in the end, and with space all goes on.
"""

from __future__ import annotations

import errno
from pathlib import Path

from typing_extensions import override

from manager.consensus import rounds
from shoal.errors import ResourceExhausted
from shoal.model.plan import create, update
from shoal.model.types import Annotations
from tests.support.alone import alone, rows_after_restart
from tests.support.managing import until
from tests.support.planning import a_task
from tests.unit.manager.storage.support import FaultyFiles

COMMITS = 14
SNAPSHOT_EVERY = 4
REFUSALS = 3
SEGMENT_BYTES = 16 << 10
BIG = Annotations(labels={"blob": "x" * 3000})
"""A segment holds four or five such tasks."""


class FillingFiles(FaultyFiles):
    """Real files; the operation of that number and some more find no space, then somebody helps."""

    def __init__(self, full_at: int | None = None) -> None:
        super().__init__()
        self.full_at = full_at
        self.taken = 0
        self.refused = 0

    @override
    def _enter(self, name: str) -> None:
        super()._enter(name)
        if name in ("create", "pwrite", "rename"):
            self.taken += 1
            is_full = self.full_at is not None and self.taken >= self.full_at
            if is_full and self.refused < REFUSALS:
                self.refused += 1
                raise OSError(errno.ENOSPC, "No space left on device")


async def live(
    directory: Path, files: FillingFiles, acknowledged: set[str], refusals: list[str]
) -> None:
    """Begin or go on: commits across segments and snapshots."""
    async with alone(
        directory, files=files, segment_bytes=SEGMENT_BYTES, snapshot_interval=SNAPSHOT_EVERY
    ) as (store, driver):
        for number in range(COMMITS):
            row = a_task(f"t{number}").replaced(annotations=BIG)
            known = store.view.tasks.get(row.id)
            try:
                await store.commit([create(row) if known is None else update(known)])
            except ResourceExhausted as error:
                refusals.append(error.message)
                await until(lambda: not driver.disk_full)
            else:
                acknowledged.add(row.id)


async def test_space_may_end_at_any_write(tmp_path, monkeypatch):
    monkeypatch.setattr(rounds, "DISK_FULL_PAUSE_S", 0.01)
    counted = FillingFiles()
    await live(tmp_path / "counted", counted, set(), [])
    assert counted.taken > 2 * COMMITS
    starts: list[str] = []
    changes: list[str] = []
    for full_at in range(1, counted.taken + 1):
        directory, acknowledged = tmp_path / str(full_at), set[str]()
        files = FillingFiles(full_at)
        try:
            await live(directory, files, acknowledged, changes)
        except ResourceExhausted as error:
            starts.append(error.message)
            refused = True
        else:
            refused = False
        assert not (refused and acknowledged), "only a start is refused"
        assert set(await rows_after_restart(directory)) >= acknowledged, full_at
        await live(directory, FillingFiles(), acknowledged, changes)
        assert acknowledged == {f"t{number}" for number in range(COMMITS)}
        assert not list(directory.glob("**/*.tmp"))
    assert starts
    assert changes
    assert all("free space and try again" in text for text in starts + changes)
