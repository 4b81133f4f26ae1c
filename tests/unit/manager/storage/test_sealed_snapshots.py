"""Snapshots at rest: unreadable without their key, every change noticed; metadata comes back."""

from __future__ import annotations

import struct

import pytest

from manager.storage.entries import SnapshotMark
from manager.storage.errors import CorruptSnapshot
from manager.storage.frames import extend
from manager.storage.keyring import KeyRing
from manager.storage.sealing import NONCE_BYTES
from manager.storage.snapshot_dir import SnapshotDir
from manager.storage.snapshot_file import (
    HEADER_BYTES,
    METADATA_BYTES_MAX,
    SnapshotRecord,
    verify,
)
from shoal.errors import FailedPrecondition, InvalidArgument
from tests.unit.manager.storage.support import IDENTITY
from tests.unit.manager.storage.test_snapshots import snapshots, some


def sealed(tmp_path) -> KeyRing:
    return KeyRing.create(tmp_path / "keys.json", IDENTITY.cluster_id)


@pytest.mark.parametrize("records", [[], some(3), some(5000, 500)], ids=["none", "few", "many"])
@pytest.mark.parametrize("metadata", [b"", b"conf state"])
def test_an_encrypted_snapshot_comes_back_and_shows_nothing(tmp_path, records, metadata):
    directory = snapshots(tmp_path, keys=sealed(tmp_path), raft_id=7)
    records = [*records, SnapshotRecord(1, b"the password of the database")]
    saved = directory.save(7, 2, iter(records), metadata=metadata)
    loaded = directory.load(SnapshotMark(7, 2))
    assert loaded.metadata == saved.metadata == metadata
    assert list(loaded.records()) == list(saved.records()) == records
    content = saved.path.read_bytes()
    assert b"password" not in content
    assert b"conf state" not in content
    with pytest.raises(FailedPrecondition, match="no keys were given"):
        snapshots(tmp_path).load(SnapshotMark(7, 2))
    assert saved.path.exists()


def test_metadata_needs_no_key_and_is_bounded(tmp_path):
    directory = snapshots(tmp_path)
    directory.save(7, 2, some(3), metadata=b"conf state")
    loaded = directory.load(SnapshotMark(7, 2))
    assert (loaded.metadata, list(loaded.records())) == (b"conf state", some(3))
    directory.save(8, 2, some(3), metadata=bytes(METADATA_BYTES_MAX))
    assert len(directory.load(SnapshotMark(8, 2)).metadata) == METADATA_BYTES_MAX
    with pytest.raises(InvalidArgument, match="metadata of a snapshot"):
        directory.save(9, 2, some(3), metadata=bytes(METADATA_BYTES_MAX + 1))


def test_a_flip_or_a_cut_anywhere_in_an_encrypted_file_is_noticed(tmp_path):
    keys = sealed(tmp_path)
    saved = snapshots(tmp_path, keys=keys).save(7, 2, some(6), metadata=b"m")
    content = saved.path.read_bytes()
    for offset in range(len(content)):
        flipped = bytearray(content)
        flipped[offset] ^= 1 << offset % 8
        for wrong in (bytes(flipped), content[:offset], content + b"\0"):
            saved.path.write_bytes(wrong)
            with pytest.raises(CorruptSnapshot):
                verify(saved.path, keys=keys)
    saved.path.write_bytes(content)
    verify(saved.path, keys=keys)


def chunks(content: bytes) -> list[tuple[int, bytes]]:
    """Type and body of every chunk as it stands on the disk."""
    found, at = [], HEADER_BYTES
    while at < len(content):
        size, _, kind = struct.unpack_from("<III", content, at)
        found.append((kind, content[at + 12 : at + 12 + size]))
        at += 12 + size
    return found


def forged(head: bytes, parts: list[tuple[int, bytes]]) -> bytes:
    """A file of these chunks with checksums that match."""
    (chain,) = struct.unpack_from("<I", head, HEADER_BYTES - 4)
    out = head
    for kind, body in parts:
        chain = extend(chain, struct.pack("<II", len(body), kind) + body)
        out += struct.pack("<III", len(body), chain, kind) + body
    return out


def test_chunks_cannot_be_moved_dropped_or_taken_from_another_snapshot(tmp_path):
    keys = sealed(tmp_path)
    records = [SnapshotRecord(1, bytes([n]) * (1 << 19)) for n in range(6)]
    directory = snapshots(tmp_path, keys=keys, raft_id=7)
    path = directory.save(7, 2, records).path
    content = path.read_bytes()
    head, parts = content[:HEADER_BYTES], chunks(content)
    assert len(parts) > 3
    others = {
        "index": directory.save(8, 2, records).path,
        "term": directory.save(7, 3, records).path,
        "member": snapshots(tmp_path, keys=keys, raft_id=8).save(9, 2, records).path,
        "cluster": SnapshotDir(tmp_path / "o", cluster_id="o", keys=keys).save(7, 2, records).path,
    }
    wrongs = [
        [parts[1], parts[0], *parts[2:]],
        [*parts[:1], *parts[2:]],
        [*parts[:-2], parts[-1]],
        [(3, parts[0][1]), *parts[1:]],
        *([chunks(other.read_bytes())[0], *parts[1:]] for other in others.values()),
    ]
    path.write_bytes(forged(head, parts))
    verify(path, keys=keys)
    for wrong in wrongs:
        path.write_bytes(forged(head, wrong))
        with pytest.raises(CorruptSnapshot, match="changed or moved"):
            verify(path, keys=keys)


def test_the_keys_that_snapshots_need_are_known_also_while_one_is_written(tmp_path):
    keys = sealed(tmp_path)
    directory = snapshots(tmp_path, keys=keys)
    assert directory.key_ids() == frozenset()
    seen = []

    def records():
        yield from some(2)
        seen.append(keys.current.id)
        keys.rotate_data_key()
        seen.append(directory.key_ids())

    directory.save(5, 1, records())
    assert seen[1] == {seen[0]} == directory.key_ids()
    directory.save(9, 1, some(1))
    assert directory.key_ids() == {seen[0], keys.current.id}
    damaged = directory.directory / f"{1:016x}-{10:016x}.snap"
    damaged.write_bytes(b"no header")
    assert directory.key_ids() == {seen[0], keys.current.id}
    snapshots(tmp_path, keep_old=0, keys=keys).prune(SnapshotMark(9, 1))
    assert directory.key_ids() == {keys.current.id}


def test_no_nonce_comes_twice_in_snapshots(tmp_path):
    directory = snapshots(tmp_path, keys=sealed(tmp_path))
    nonces = []
    for _ in range(40):
        saved = directory.save(7, 2, some(5), metadata=b"m")
        nonces += [body[:NONCE_BYTES] for _, body in chunks(saved.path.read_bytes())]
    assert len(nonces) == len(set(nonces)) == 120
