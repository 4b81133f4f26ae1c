"""The log against a model, by random histories with crashes at every kind of moment."""

from __future__ import annotations

import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manager.storage.entries import Batch, Entry, HardState, Recovered, SnapshotMark
from manager.storage.errors import CorruptLog, StorageFailed
from manager.storage.keyring import KEYS_MAX, KeyRing
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.errors import ResourceExhausted
from tests.unit.manager.storage.support import IDENTITY, FaultyFiles

Model = tuple[HardState, SnapshotMark | None, dict[int, Entry]]


class LogMachine(RuleBasedStateMachine):
    """`model` is what was acknowledged; a crash may only lose what was not."""

    sealed = False

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="shoal-wal-"))
        self.keys = None
        self.urandom = os.urandom
        if self.sealed:
            # What a torn batch still reads as depends on the bytes it was sealed to: an example
            # that is run again must meet the same ones.
            os.urandom = random.Random(0).randbytes
            self.keys = KeyRing.create(self.root / "keys.json", IDENTITY.cluster_id)
        self.files = FaultyFiles()
        self.wal = Wal.create(
            self.root / "raft",
            IDENTITY,
            segment_bytes=SEGMENT_BYTES_MIN,
            files=self.files,
            keys=self.keys,
        )
        self.hard_state = HardState()
        self.mark: SnapshotMark | None = None
        self.entries: dict[int, Entry] = {}
        self.last = 0
        self.released = 0
        self.history: list[Model] = []

    def teardown(self) -> None:
        os.urandom = self.urandom
        self.wal.close()
        assert self.files.open_fds == set()
        shutil.rmtree(self.root)

    def model(self) -> Model:
        return self.hard_state, self.mark, dict(self.entries)

    @invariant()
    def agrees_in_memory(self) -> None:
        assert (self.wal.last_index, self.wal.hard_state, self.wal.mark) == (
            self.last,
            self.hard_state,
            self.mark,
        )
        self.history.append(self.model())

    def draw_batch(self, data: st.DataObject) -> Batch:
        # Data has no 512 aligned zeros: then a flip can be told from a lost sector (design).
        floor = max(self.hard_state.commit, self.mark.index if self.mark else 0)
        term = self.hard_state.term + data.draw(st.integers(0, 2))
        first = data.draw(st.integers(floor + 1, self.last + 1))
        sizes = data.draw(st.lists(st.integers(0, 400), max_size=12))
        new = tuple(
            Entry(first + n, term, n, data.draw(st.sampled_from([b"\0", b"a", b"\xa5"])) * size)
            for n, size in enumerate(sizes)
        )
        last = new[-1].index if new else self.last
        commit = data.draw(st.integers(self.hard_state.commit, last))
        hard = HardState(term, data.draw(st.integers(0, 5)), commit)
        return Batch(new, hard if data.draw(st.booleans()) or new else None)

    def acknowledge(self, batch: Batch) -> None:
        for entry in batch.entries:
            for stale in range(entry.index, self.last + 1):
                self.entries.pop(stale, None)
            self.entries[entry.index] = entry
            self.last = entry.index
        self.hard_state = batch.hard_state or self.hard_state

    @rule(data=st.data())
    def append(self, data: st.DataObject) -> None:
        batch = self.draw_batch(data)
        self.wal.append_all([batch])
        self.acknowledge(batch)

    @rule(data=st.data(), space=st.integers(0, 3000))
    def append_with_little_space(self, data: st.DataObject, space: int) -> None:
        batch = self.draw_batch(data)
        self.files.space_bytes = space
        try:
            self.wal.append_all([batch])
        except ResourceExhausted:
            pass
        else:
            self.acknowledge(batch)
        finally:
            self.wal._ahead.close()  # the thread must not see the space change under it
            self.files.space_bytes = None

    @rule(data=st.data(), call=st.sampled_from(["pwrite", "fdatasync"]))
    def fail_and_restart(self, data: st.DataObject, call: str) -> None:
        batch = self.draw_batch(data)
        self.wal._ahead.close()
        self.files.fail[call] = errno.EIO
        try:
            self.wal.append_all([batch])
        except StorageFailed:
            self.files.fail.clear()
            before = self.model()
            self.acknowledge(batch)
            self.restart(either=before)
        finally:
            self.files.fail.clear()

    @rule(data=st.data())
    def snapshot(self, data: st.DataObject) -> None:
        low = self.mark.index if self.mark else 1
        index = data.draw(st.integers(low, max(low, self.hard_state.commit)))
        if index in self.entries and index <= self.hard_state.commit:
            self.wal.mark_snapshot(index, self.entries[index].term)
            self.mark = SnapshotMark(index, self.entries[index].term)

    @rule(ahead=st.integers(1, 50))
    def install_snapshot(self, ahead: int) -> None:
        mark = SnapshotMark(self.last + ahead, self.hard_state.term + 1)
        hard = HardState(mark.term, 0, mark.index)
        self.wal.append((), hard, mark)
        self.hard_state, self.mark, self.entries, self.last = hard, mark, {}, mark.index

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        if self.mark is not None:
            index = data.draw(st.integers(0, self.mark.index))
            self.wal.release(index)
            self.released = max(self.released, index)

    @rule()
    def rotate(self) -> None:
        """What follows is sealed with another key; those that no segment needs go."""
        if self.keys is None:
            return
        self.keys.drop(self.keys.retired - self.wal.key_ids())
        if len(self.keys.retired) < KEYS_MAX - 1:
            self.keys.rotate_data_key()

    def open(self, directory: Path, **options) -> tuple[Wal, Recovered]:
        return Wal.open(
            directory, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN, keys=self.keys, **options
        )

    @rule()
    def restart(self, either: Model | None = None) -> None:
        self.wal.close()
        self.check_copy()
        self.wal, recovered = self.open(self.wal.directory, files=self.files)
        got = (recovered.hard_state, recovered.mark, {e.index: e for e in recovered.entries})
        if either is not None and not self.same(got, self.model()):
            self.hard_state, self.mark, self.entries = either
            self.last = max(self.entries, default=self.mark.index if self.mark else 0)
        assert self.same(got, self.model())

    def check_copy(self) -> None:
        """Two restarts give the same: replay has no memory but the disk."""
        copy = self.root / "copy"
        shutil.copytree(self.wal.directory, copy)
        wal, first = self.open(copy)
        wal.close()
        wal, second = self.open(copy)
        wal.close()
        assert (second.hard_state, second.mark, second.entries) == (
            first.hard_state,
            first.mark,
            first.entries,
        )
        shutil.rmtree(copy)

    @rule(data=st.data())
    def crash_in_the_last_batch(self, data: st.DataObject) -> None:
        """Append in a copy, cut or flip there: the old state, the new one, or a refusal."""
        batch = self.draw_batch(data)
        copy = self.root / "crash"
        self.wal.close()
        shutil.copytree(self.wal.directory, copy)
        self.restart()
        wal, before = self.open(copy)
        old = sorted(copy.glob("*.wal"))[-1]
        old_end = len(old.read_bytes().rstrip(b"\0"))
        wal.append_all([batch])
        wal.close()
        wal, after = self.open(copy)
        wal.close()
        path = sorted(copy.glob("*.wal"))[-1]
        content = path.read_bytes()
        # A fixed range: what is encrypted differs from run to run, and so does where it ends.
        at = data.draw(st.integers(0, 1 << 20)) % len(content.rstrip(b"\0"))
        cut = data.draw(st.booleans())
        flip = bytes([content[at] ^ 1 << data.draw(st.integers(0, 7))])
        path.write_bytes(
            content[:at] + (bytes(len(content) - at) if cut else flip + content[at + 1 :])
        )
        try:
            wal, got = self.open(copy)
        except CorruptLog:
            pass
        else:
            wal.close()
            found, *states = (
                (r.hard_state, r.mark, {e.index: e for e in r.entries})
                for r in (got, before, after)
            )
            if not cut:
                assert found == states[1]
            elif path == old and at < old_end:
                # The cut reached back over earlier batches: an earlier state is then right.
                assert any(self.same(found, earlier) for earlier in self.history)
            else:
                assert found in states
        shutil.rmtree(copy)

    @staticmethod
    def same(got: Model, model: Model) -> bool:
        """Equal, but for entries up to the mark, which may be gone or left of the past."""
        covered = model[1].index if model[1] else 0
        tails = [{i: e for i, e in m[2].items() if i > covered} for m in (got, model)]
        return got[:2] == model[:2] and tails[0] == tails[1]


LogMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestLog = LogMachine.TestCase


class SealedLogMachine(LogMachine):
    """The same log, encrypted at rest."""

    sealed = True


SealedLogMachine.TestCase.settings = LogMachine.TestCase.settings
TestSealedLog = SealedLogMachine.TestCase
