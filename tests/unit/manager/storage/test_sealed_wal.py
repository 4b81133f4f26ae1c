"""The log at rest: unreadable without its key, every change noticed, nothing else changed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manager.storage.entries import Entry, HardState
from manager.storage.errors import CorruptLog
from manager.storage.frames import (
    HEADER_BYTES,
    WalIdentity,
    decode_header,
    encode_batch,
    encode_header,
    encode_payload,
    read_frame,
)
from manager.storage.keyring import KeyRing
from manager.storage.sealing import NONCE_BYTES, DataKey, Unsealable
from manager.storage.segments import list_segments
from manager.storage.wal import SEGMENT_BYTES_MIN, Wal
from shoal.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, SwarmError
from tests.unit.manager.storage.support import IDENTITY, FaultyFiles, entries

SMALL = SEGMENT_BYTES_MIN
SECRET = b"the password of the database"


def ring(tmp_path: Path) -> KeyRing:
    tmp_path.mkdir(exist_ok=True)
    return KeyRing.create(tmp_path / "keys.json", IDENTITY.cluster_id)


def create(tmp_path: Path, keys: KeyRing, **options) -> Wal:
    return Wal.create(tmp_path / "wal", IDENTITY, segment_bytes=SMALL, keys=keys, **options)


def recover(directory: Path, keys: KeyRing | None):
    wal, recovered = Wal.open(directory, IDENTITY, segment_bytes=SMALL, keys=keys)
    wal.close()
    return recovered


def payloads(path: Path) -> list[bytes]:
    """The payloads of the entries of a segment as they stand on the disk."""
    content = path.read_bytes()
    header = decode_header(content, str(path))
    offset, chain, found = HEADER_BYTES, header.crc, []
    while (frame := read_frame(content, offset, header.crc, chain)) is not None:
        offset, chain = frame.end, frame.crc
        if frame.type == 1:
            found.append(frame.payload)
    return found


def test_the_disk_does_not_show_what_was_written_and_the_log_gives_it_back(tmp_path):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    batch = [Entry(1, 1, 7, SECRET * 3), Entry(2, 1, 0, b""), Entry(3, 1, 255, SECRET)]
    wal.append(batch, HardState(1, 2, 3))
    wal.append(entries(4, 60, size=100))
    assert wal.key_ids() == {keys.current.id}
    wal.close()
    for path in wal.directory.iterdir():
        assert SECRET not in path.read_bytes()
        assert b"1/4:" not in path.read_bytes()
    recovered = recover(wal.directory, keys)
    assert recovered.entries == (*batch, *entries(4, 60, size=100))
    assert recovered.hard_state == HardState(1, 2, 3)


def test_without_its_keys_the_log_is_refused(tmp_path):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    wal.append(entries(1, 2))
    wal.close()
    with pytest.raises(FailedPrecondition, match="no keys were given"):
        recover(wal.directory, None)
    other = ring(tmp_path / "other")
    with pytest.raises(FailedPrecondition, match=r"other/keys\.json: key .* is not in it"):
        recover(wal.directory, other)
    assert recover(wal.directory, keys).last_index == 2


def test_a_log_in_the_clear_goes_on_encrypted_in_a_new_segment(tmp_path):
    wal = Wal.create(tmp_path / "wal", IDENTITY, segment_bytes=SMALL)
    wal.append(entries(1, 3))
    wal.close()
    keys = ring(tmp_path)
    wal, _ = Wal.open(wal.directory, IDENTITY, segment_bytes=SMALL, keys=keys)
    assert len(list_segments(wal.directory)) == 1
    assert wal.key_ids() == set()
    wal.append([Entry(4, 1, 1, SECRET)])
    assert wal.key_ids() == {keys.current.id}
    wal.append(entries(5, 6))
    wal.close()
    first, second = list_segments(wal.directory)
    assert first.path.read_bytes()[8] == 1
    assert second.path.read_bytes()[8] == 2
    assert SECRET not in second.path.read_bytes()
    recovered = recover(wal.directory, keys)
    assert recovered.entries == (*entries(1, 3), Entry(4, 1, 1, SECRET), *entries(5, 6))


def test_a_rotated_key_begins_a_segment_and_the_old_one_is_needed_until_that_is_released(tmp_path):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    wal.append(entries(1, 3))
    old = keys.current.id
    new = keys.rotate_data_key(since=4)
    wal.append(entries(4, 5))
    assert wal.key_ids() == {old, new}
    wal.mark_snapshot(3, 1)
    assert wal.release(3) == 1
    assert wal.key_ids() == {new}
    keys.drop(keys.retired - wal.key_ids())
    wal.close()
    again = KeyRing.open(tmp_path / "keys.json", IDENTITY.cluster_id)
    assert recover(wal.directory, again).entries == tuple(entries(4, 5))
    with pytest.raises(FailedPrecondition, match="is not in it"):
        again.get(old)


def test_every_flipped_bit_is_noticed(tmp_path):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    wal.append(entries(1, 3), HardState(1, 2, 0))
    wal.append(entries(4, 9, size=90), HardState(2, 2, 4))
    wal.close()
    (path,) = wal.directory.glob("*.wal")
    content = path.read_bytes()
    chosen = random.Random(11)
    for offset in range(len(content.rstrip(b"\0"))):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << chosen.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(SwarmError) as refusal:
            recover(wal.directory, keys)
        assert str(wal.directory) in str(refusal.value), offset
    path.write_bytes(content)
    assert recover(wal.directory, keys).last_index == 9


def rewritten(path: Path, change) -> None:
    """Change the entries' (index, term, kind, sealed data), with every checksum made to match."""
    content = path.read_bytes()
    header = decode_header(content, str(path))
    batch = [encode_payload(HardState())]
    for payload in payloads(path):
        index, term = (int.from_bytes(payload[at : at + 8], "little") for at in (0, 8))
        batch.append(encode_payload(change(Entry(index, term, payload[16], payload[17:]))))
    raw, crc = encode_header(header)
    blob, _ = encode_batch(batch, offset=HEADER_BYTES, header_crc=crc, chain=crc)
    path.write_bytes((raw + blob).ljust(len(content), b"\0"))


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: Entry(entry.index, 9, entry.kind, entry.data),
        lambda entry: Entry(entry.index + 1, entry.term, entry.kind, entry.data),
        lambda entry: Entry(entry.index, entry.term, entry.kind ^ 1, entry.data),
        lambda entry: Entry(entry.index, entry.term, entry.kind, entry.data[:-1]),
        lambda entry: Entry(entry.index, entry.term, entry.kind, entry.data[:5]),
        lambda entry: Entry(
            entry.index, entry.term, entry.kind, bytes([entry.data[0] ^ 1]) + entry.data[1:]
        ),
    ],
    ids=["term", "index", "kind", "cut", "short", "nonce"],
)
def test_a_forged_record_with_right_checksums_is_refused(tmp_path, change):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    wal.append(entries(1, 1))
    wal.close()
    (path,) = wal.directory.glob("*.wal")
    rewritten(path, lambda entry: entry)
    assert recover(wal.directory, keys).entries == tuple(entries(1, 1))
    rewritten(path, change)
    with pytest.raises(CorruptLog, match="changed or moved: its key does not open it"):
        recover(wal.directory, keys)


@pytest.mark.parametrize("other", [WalIdentity("another", 7), WalIdentity(IDENTITY.cluster_id, 8)])
def test_a_record_of_another_cluster_or_member_does_not_open(tmp_path, other):
    keys = ring(tmp_path)
    donor = Wal.create(tmp_path / "donor", other, segment_bytes=SMALL, keys=keys)
    donor.append(entries(1, 1))
    donor.close()
    (source,) = donor.directory.glob("*.wal")
    (payload,) = payloads(source)
    wal = create(tmp_path, keys)
    wal.append(entries(1, 1))
    wal.close()
    (path,) = wal.directory.glob("*.wal")
    rewritten(path, lambda entry: Entry(entry.index, entry.term, entry.kind, payload[17:]))
    with pytest.raises(CorruptLog, match="changed or moved"):
        recover(wal.directory, keys)


def test_no_nonce_comes_twice_not_even_for_an_overwritten_index(tmp_path):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    nonces: list[bytes] = []
    for term in range(1, 40):
        wal.append(entries(1, 30, term=term))
    wal.close()
    for file in list_segments(wal.directory):
        nonces += [payload[17 : 17 + NONCE_BYTES] for payload in payloads(file.path)]
    assert len(nonces) == 39 * 30
    assert len(set(nonces)) == len(nonces)


def test_a_torn_tail_of_an_encrypted_log_is_cut_at_every_byte(tmp_path):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    wal.append(entries(1, 2))
    (path,) = wal.directory.glob("*.wal")
    start = len(path.read_bytes().rstrip(b"\0"))
    wal.append(entries(3, 5, size=200))
    wal.close()
    content = path.read_bytes()
    for cut in range(start, len(content.rstrip(b"\0"))):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        copy.mkdir()
        (copy / path.name).write_bytes(content[:cut] + bytes(len(content) - cut))
        assert recover(copy, keys).entries == tuple(entries(1, 2)), cut


@pytest.mark.parametrize("space_bytes", [0, 1, 300, 700])
def test_a_full_disk_leaves_no_trace_of_an_encrypted_batch(tmp_path, space_bytes):
    keys = ring(tmp_path)
    files = FaultyFiles()
    wal = create(tmp_path, keys, files=files)
    wal.append(entries(1, 2), HardState(1, 0, 1))
    for _ in range(3):
        files.space_bytes = space_bytes
        with pytest.raises(ResourceExhausted, match="free space and try again"):
            wal.append(entries(3, 10, size=100), HardState(2, 0, 2))
    files.space_bytes = None
    wal.append(entries(3, 3, term=5))
    wal.close()
    assert recover(wal.directory, keys).entries == (*entries(1, 2), *entries(3, 3, term=5))


def test_a_full_disk_after_a_rotation_refuses_and_recovers(tmp_path):
    keys = ring(tmp_path)
    files = FaultyFiles()
    wal = create(tmp_path, keys, files=files)
    wal.append(entries(1, 2))
    keys.rotate_data_key(since=3)
    files.space_bytes = 100
    with pytest.raises(ResourceExhausted):
        wal.append(entries(3, 4))
    assert wal.key_ids() == keys.retired
    files.space_bytes = None
    wal.append(entries(3, 4))
    wal.close()
    assert recover(wal.directory, keys).entries == tuple(entries(1, 4))


def test_limits_are_named(tmp_path):
    keys = ring(tmp_path)
    wal = create(tmp_path, keys)
    with pytest.raises(InvalidArgument, match="data of entry 1"):
        wal.append([Entry(1, 1, 1, bytes(16 << 20))])
    with pytest.raises(InvalidArgument, match="out of range"):
        wal.append([Entry(1, -1, 1, b"")])
    wal.append(entries(1, 1))
    wal.close()
    with pytest.raises(InvalidArgument, match="data key"):
        DataKey(bytes(16), bytes(32))


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(max_size=300),
    aad=st.binary(max_size=40),
    position=st.integers(0, 10_000),
    bit=st.integers(0, 7),
)
def test_a_seal_opens_only_unchanged_and_in_its_place(data, aad, position, bit):
    key = DataKey.make()
    sealed = key.seal(data, aad)
    assert key.unseal(sealed, aad) == data
    assert data not in sealed or len(data) < 3
    changed = bytearray(sealed)
    changed[position % len(sealed)] ^= 1 << bit
    for wrong, place in ((bytes(changed), aad), (sealed, aad + b"x"), (sealed[:-1], aad)):
        with pytest.raises(Unsealable):
            key.unseal(wrong, place)


def test_a_sealer_never_repeats_a_nonce():
    seal = DataKey.make().sealer(2)
    assert seal(b"", b"")[:NONCE_BYTES] != seal(b"", b"")[:NONCE_BYTES]
    with pytest.raises(IndexError, match="more seals"):
        seal(b"", b"")
