"""Torn tails are repaired to the state before the batch; every other damage is refused."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from manager.storage.entries import Entry, HardState, Recovered
from manager.storage.errors import CorruptLog
from manager.storage.frames import HEADER_BYTES
from manager.storage.scan import SECTOR_BYTES
from manager.storage.segments import BROKEN_KEPT
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.errors import SwarmError
from tests.unit.manager.storage.support import IDENTITY, entries

BATCHES = [
    (entries(1, 3), HardState(1, 2, 0)),
    (entries(4, 4, size=200), HardState(1, 2, 3)),
    (entries(5, 9, size=300), HardState(2, 5, 4)),
]


def segment(directory: Path) -> Path:
    return sorted(directory.glob("*.wal"))[-1]


def recover(directory: Path) -> Recovered:
    wal, recovered = Wal.open(directory, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN)
    wal.close()
    return recovered


def state(recovered: Recovered) -> tuple[object, ...]:
    return recovered.hard_state, recovered.mark, recovered.entries


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The log after every batch, and the number of bytes used then."""
    directory = tmp_path_factory.mktemp("wal") / "raft"
    wal = Wal.create(directory, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN)
    states, ends = [], []

    def note():
        content = segment(directory).read_bytes()
        copy = directory.parent / f"at-{len(states)}"
        shutil.copytree(directory, copy)
        states.append(state(recover(copy)))
        ends.append(len(content.rstrip(b"\0")))

    note()
    for batch in BATCHES:
        wal.append(*batch)
        note()
    wal.close()
    return directory, segment(directory).read_bytes(), states, ends


def with_content(written, tmp_path: Path, content: bytes) -> Path:
    copy = tmp_path / "raft"
    copy.mkdir(exist_ok=True)
    for old in copy.iterdir():
        old.unlink()
    (copy / segment(written[0]).name).write_bytes(content)
    return copy


def test_a_tail_cut_at_every_byte_gives_the_state_before_the_batch(written, tmp_path):
    _, content, states, ends = written
    assert len(set(map(str, states))) == len(states)
    for cut in range(ends[1], ends[-1]):
        copy = with_content(written, tmp_path, content[:cut] + bytes(len(content) - cut))
        recovered = recover(copy)
        whole = max(number for number, end in enumerate(ends) if end <= cut)
        assert state(recovered) == states[whole], cut
        assert (recovered.repaired is None) == (cut == ends[whole]), cut
        if recovered.repaired is not None:
            assert content.startswith(Path(recovered.repaired).read_bytes())
            again = recover(copy)
            assert (state(again), again.repaired) == (states[whole], None)


def test_the_log_can_be_written_after_a_repair(written, tmp_path):
    _, content, states, ends = written
    keep = ends[3] - 50
    copy = with_content(written, tmp_path, content[:keep] + bytes(len(content) - keep))
    wal, recovered = Wal.open(copy, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN)
    assert state(recovered) == states[2]
    wal.append(entries(5, 6, term=9))
    wal.close()
    assert recover(copy).entries == (*recovered.entries, *entries(5, 6, term=9))


def test_any_subset_of_lost_sectors_of_the_last_batch_gives_the_state_before_it(written, tmp_path):
    _, content, states, ends = written
    start, end = ends[2], ends[3]
    sectors = range(start // SECTOR_BYTES, (end - 1) // SECTOR_BYTES + 1)
    assert len(sectors) >= 4
    for lost in range(1, 1 << len(sectors)):
        torn = bytearray(content)
        for bit, sector in enumerate(sectors):
            if lost >> bit & 1:
                low, high = max(start, sector * SECTOR_BYTES), min(end, (sector + 1) * SECTOR_BYTES)
                torn[low:high] = bytes(high - low)
        copy = with_content(written, tmp_path, bytes(torn))
        assert state(recover(copy)) == states[2], bin(lost)


def test_a_flip_of_any_bit_is_refused(written, tmp_path):
    _, content, _, ends = written
    chosen = random.Random(5)
    for offset in range(ends[-1]):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << chosen.randrange(8)
        copy = with_content(written, tmp_path, bytes(flipped))
        with pytest.raises(SwarmError) as refusal:
            recover(copy)
        assert str(copy) in str(refusal.value), offset
        assert segment(copy).read_bytes() == bytes(flipped)


def test_a_flip_after_the_end_loses_nothing(written, tmp_path):
    _, content, states, ends = written
    for offset in range(ends[-1], len(content), 7):
        flipped = bytearray(content)
        flipped[offset] ^= 16
        copy = with_content(written, tmp_path, bytes(flipped))
        try:
            assert state(recover(copy)) == states[-1], offset
        except CorruptLog:
            assert segment(copy).read_bytes() == bytes(flipped)


def test_the_refusal_names_file_offset_and_remedy(written, tmp_path):
    _, content, _, ends = written
    flipped = bytearray(content)
    flipped[ends[0] + 40] ^= 4
    copy = with_content(written, tmp_path, bytes(flipped))
    with pytest.raises(CorruptLog, match=r"a later batch follows .* join it again") as refusal:
        recover(copy)
    assert refusal.value.context["file"] == str(segment(copy))
    assert refusal.value.context["offset"] == (ends[0] + 7) // 8 * 8


def test_a_lost_batch_before_a_later_one_is_refused(written, tmp_path):
    _, content, _, ends = written
    for low, high in ((ends[0], ends[1]), (ends[1], ends[2]), (ends[0] + 100, ends[2])):
        holed = bytearray(content)
        holed[low:high] = bytes(high - low)
        with pytest.raises(CorruptLog, match="later batch"):
            recover(with_content(written, tmp_path, bytes(holed)))


def test_the_copied_hard_state_is_never_cut_off(written, tmp_path):
    _, content, _, _ = written
    for keep in (HEADER_BYTES, HEADER_BYTES + 5, HEADER_BYTES + 20):
        cut = content[:keep] + bytes(len(content) - keep)
        with pytest.raises(CorruptLog, match="hard state"):
            recover(with_content(written, tmp_path, cut))


def test_a_file_of_the_wrong_length_is_refused(written, tmp_path):
    _, content, _, ends = written
    for wrong in (b"", content[:100], content[: ends[-1]], content[:-1], content + b"\0"):
        with pytest.raises(CorruptLog):
            recover(with_content(written, tmp_path, wrong))


def test_garbage_after_the_end_is_refused(written, tmp_path):
    _, content, _, ends = written
    start = (ends[-1] + 7) // 8 * 8
    garbage = content[:start] + random.Random(1).randbytes(len(content) - start)
    with pytest.raises(CorruptLog, match="not cut short"):
        recover(with_content(written, tmp_path, garbage))


def many_segments(directory: Path) -> tuple[Entry, ...]:
    wal = Wal.create(directory, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN)
    written = entries(1, 200, size=60)
    for entry in written:
        wal.append([entry], HardState(1, 1, 0))
    wal.close()
    return tuple(written)


def test_older_segments_may_not_be_torn_or_lost_or_exchanged(tmp_path):
    directory = tmp_path / "raft"
    many_segments(directory)
    old, newer = sorted(directory.glob("*.wal"))[1:3]
    content = old.read_bytes()
    used = len(content.rstrip(b"\0"))
    old.write_bytes(content[: used - 30] + bytes(len(content) - used + 30))
    with pytest.raises(CorruptLog, match="later segments exist"):
        recover(directory)
    batch = len(content.rstrip(b"\0")) // 2
    old.write_bytes(content[:HEADER_BYTES] + bytes(batch) + content[HEADER_BYTES + batch :])
    with pytest.raises(CorruptLog):
        recover(directory)
    old.write_bytes(newer.read_bytes())
    with pytest.raises(CorruptLog, match="the header belongs to"):
        recover(directory)
    old.write_bytes(content)
    assert recover(directory).last_index == 200


def test_an_older_segment_whose_end_is_lost_cleanly_breaks_the_chain(tmp_path):
    directory = tmp_path / "raft"
    wal = Wal.create(directory, IDENTITY, segment_bytes=SEGMENT_BYTES_MIN)
    wal.append(entries(1, 1))
    end = len(segment(directory).read_bytes().rstrip(b"\0"))
    wal.append((), HardState(3, 2, 0))
    old = segment(directory)
    wal.append(entries(2, 60, size=60))
    wal.close()
    content = old.read_bytes()
    old.write_bytes(content[:end] + bytes(len(content) - end))
    with pytest.raises(CorruptLog, match="does not continue the segment before it"):
        recover(directory)


def test_broken_copies_are_bounded(written, tmp_path):
    _, content, states, ends = written
    copy = with_content(written, tmp_path, content)
    for cut in range(6):
        keep = ends[-1] - 8 * (cut + 1)
        segment(copy).write_bytes(content[:keep] + bytes(len(content) - keep))
        assert state(recover(copy)) == states[2]
    assert len(list(copy.glob("*.broken"))) == BROKEN_KEPT
