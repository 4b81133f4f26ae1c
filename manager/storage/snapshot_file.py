"""The bytes of a snapshot file, format versions 1 and 2: a stream of (kind, data) records.

Header, then chunks of at most 1 MiB of records with a CRC32C each (chained), then a trailer with
the number of records and a SHA-256 over everything before it. Records are opaque, in the order
of the writer. Version 2 adds a metadata chunk for the Raft driver, and seals every chunk when the
header names a key. Refuses to end well on a file that does not verify to its last byte.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec

from manager.storage.errors import CorruptSnapshot
from manager.storage.frames import check_cluster_id, extend
from manager.storage.sealing import NO_KEY, SEAL_BYTES, DataKey, DataKeys, Unsealable
from shoal.errors import FailedPrecondition, InvalidArgument, invariant

MAGIC = b"SHOALSNP"
VERSION = 1
VERSION_2 = 2
HEADER_BYTES = 128
CHUNK_BYTES_MAX = 1 << 20
RECORD_BYTES_MAX = 16 << 20
KIND_MAX = 0xFFFF

METADATA_BYTES_MAX = CHUNK_BYTES_MAX

# magic, version, header bytes, cluster id, index, term, key id, raft id
_HEADER = struct.Struct("<8sII32sQQ16sQ36x")
_CHUNK = struct.Struct("<III")  # bytes, crc, type
_RECORD = struct.Struct("<HI")  # kind, bytes
_TRAILER = struct.Struct("<QQ32s")  # records, bytes of all chunks, SHA-256 of the file so far
# magic, cluster id, raft id, chunk type, index, term, chunk number: where a sealed chunk belongs
_PLACE = struct.Struct("<8s32sQBQQQ")
_CHUNK_RECORDS, _CHUNK_TRAILER, _CHUNK_METADATA = 1, 2, 3
_CHUNKS = frozenset({_CHUNK_RECORDS, _CHUNK_TRAILER, _CHUNK_METADATA})


class SnapshotRecord(msgspec.Struct, frozen=True, gc=False):
    """One object of a snapshot; `kind` (0-65535) and `data` mean nothing here."""

    kind: int
    data: bytes


class Source(Protocol):
    """What a snapshot is read from: a binary file, or a part of one."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes, fewer only at the end."""
        ...


class SnapshotHeader(msgspec.Struct, frozen=True):
    """The state after entry `index` of `term`, in cluster `cluster_id`.

    raft_id: who wrote it, 0 = nobody in particular. key_id: what seals it, NO_KEY = nothing.
    metadata: opaque, for the Raft driver (membership); at most `METADATA_BYTES_MAX`.
    A header without any of the three is written as version 1.
    """

    cluster_id: str
    index: int
    term: int
    raft_id: int = 0
    key_id: bytes = NO_KEY
    metadata: bytes = b""

    @property
    def version(self) -> int:
        """The lowest format version that can hold it."""
        plain = self.raft_id == 0 and self.key_id == NO_KEY and not self.metadata
        return VERSION if plain else VERSION_2


def encode(
    header: SnapshotHeader, records: Iterable[SnapshotRecord], *, key: DataKey | None = None
) -> Iterator[bytes]:
    """The file, piece by piece; takes one record at a time and holds at most one chunk.

    key: what `header.key_id` names. Raises: InvalidArgument for a kind or size out of range.
    """
    invariant(header.key_id == (NO_KEY if key is None else key.id), "header names another key")
    writer = _Writer(header, key)
    yield writer.head
    if header.metadata:
        yield writer.chunk(_CHUNK_METADATA, header.metadata)
    count = total = 0
    for chunk, number in _chunks(records):
        yield writer.chunk(_CHUNK_RECORDS, chunk)
        count, total = count + number, total + len(chunk)
    digest = writer.digest.digest()
    yield writer.chunk(_CHUNK_TRAILER, _TRAILER.pack(count, total, digest))


def read_header(file: Source, path: Path) -> tuple[SnapshotHeader, bytes]:
    """The header, without the metadata, and its raw bytes; `file` is then at the first chunk.

    Raises: CorruptSnapshot; FailedPrecondition when a newer version wrote it.
    """
    raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES or raw[:8] != MAGIC:
        raise _corrupt(path, 0, "no snapshot header")
    _, version, _, cluster, index, term, key_id, raft_id = _HEADER.unpack_from(raw)
    (crc,) = struct.unpack_from("<I", raw, HEADER_BYTES - 4)
    if extend(0, raw[: HEADER_BYTES - 4]) != crc:
        raise _corrupt(path, 0, "the header does not match its checksum")
    if version not in (VERSION, VERSION_2):
        raise FailedPrecondition(
            f"{path}: snapshot format {version}, this version reads {VERSION} to {VERSION_2}:"
            " run the newer one"
        )
    header = SnapshotHeader(cluster.rstrip(b"\0").decode(), index, term, raft_id, key_id)
    if version == VERSION and header.version != VERSION:
        raise _corrupt(path, 0, "a header of version 1 with fields of version 2")
    return header, raw


def verify(path: Path, *, keys: DataKeys | None = None) -> SnapshotHeader:
    """Read the whole file, in bounded memory, and check every byte of it.

    Returns the header with the metadata. Raises: CorruptSnapshot; FailedPrecondition when a newer
    version wrote it or its key is not there.
    """
    with path.open("rb") as file:
        reader = SnapshotReader(file, path, keys=keys)
        for _ in reader.records():
            pass
    return reader.header


class SnapshotReader:
    """Reads a file once, from its start; `header` is whole, metadata included, from the beginning.

    Raises: CorruptSnapshot at the first byte that is wrong, maybe after some records;
    FailedPrecondition when a newer version wrote it or its key is not there.
    """

    def __init__(self, file: Source, path: Path, *, keys: DataKeys | None = None) -> None:
        self._file = file
        self._path = path
        self.header, raw = read_header(file, path)
        self._key = _find_key(self.header, path, keys)
        self._digest = hashlib.sha256(raw)
        (self._chain,) = struct.unpack_from("<I", raw, HEADER_BYTES - 4)
        self._offset, self._number = HEADER_BYTES, 0
        self._next = self._chunk()
        if self._next[0] == _CHUNK_METADATA:
            if raw[8] == VERSION:
                raise self._corrupt("a chunk of version 2 in a file of version 1")
            self.header = msgspec.structs.replace(self.header, metadata=self._next[1])
            self._next = self._chunk()

    def records(self) -> Iterator[SnapshotRecord]:
        """Yield the records; the trailer is checked at the end. To be called once."""
        rest, count, total = b"", 0, 0
        while self._next[0] == _CHUNK_RECORDS:
            body = self._next[1]
            total += len(body)
            records, rest = _split(rest + body, self._path, self._offset)
            count += len(records)
            yield from records
            self._next = self._chunk()
        kind, body, digest = self._next
        if kind != _CHUNK_TRAILER:
            raise self._corrupt("a metadata chunk between the records")
        if rest or self._file.read(1):
            raise self._corrupt("bytes after the last record")
        if len(body) != _TRAILER.size or _TRAILER.unpack(body) != (count, total, digest):
            raise self._corrupt("the trailer does not match the records")

    def _chunk(self) -> tuple[int, bytes, bytes]:
        """Type and plain body of the next chunk, and the digest of the file before it."""
        digest = self._digest.digest()
        sealed_max = CHUNK_BYTES_MAX + (0 if self._key is None else SEAL_BYTES)
        head = self._file.read(_CHUNK.size)
        if len(head) < _CHUNK.size:
            raise self._corrupt("the file ends without a trailer")
        size, _, kind = _CHUNK.unpack(head)
        if size > sealed_max or kind not in _CHUNKS:
            raise self._corrupt("no chunk header")
        framed, self._chain = _frame(kind, self._file.read(size), self._chain)
        if not framed.startswith(head):
            raise self._corrupt("a chunk does not match its checksum")
        body = framed[_CHUNK.size :]
        if self._key is not None:
            try:
                body = self._key.unseal(body, _place(self.header, kind, self._number))
            except Unsealable:
                raise self._corrupt(
                    "a chunk was changed or moved: its key does not open it"
                ) from None
        self._digest.update(framed)
        self._offset, self._number = self._offset + len(framed), self._number + 1
        return kind, body, digest

    def _corrupt(self, reason: str) -> CorruptSnapshot:
        return _corrupt(self._path, self._offset, reason)


class _Writer:
    """Frames, seals and sums up chunks."""

    def __init__(self, header: SnapshotHeader, key: DataKey | None) -> None:
        if len(header.metadata) > METADATA_BYTES_MAX:
            raise InvalidArgument(
                f"metadata of a snapshot: {len(header.metadata)} bytes exceed {METADATA_BYTES_MAX}"
            )
        self.head = _encode_header(header)
        self.digest = hashlib.sha256(self.head)
        self._header = header
        self._key = key
        self._number = 0
        (self._chain,) = struct.unpack_from("<I", self.head, HEADER_BYTES - 4)

    def chunk(self, kind: int, body: bytes) -> bytes:
        """The bytes of the next chunk."""
        if self._key is not None:
            body = self._key.seal(body, _place(self._header, kind, self._number))
        framed, self._chain = _frame(kind, body, self._chain)
        self.digest.update(framed)
        self._number += 1
        return framed


def _find_key(header: SnapshotHeader, path: Path, keys: DataKeys | None) -> DataKey | None:
    if header.key_id == NO_KEY:
        return None
    if keys is None:
        raise FailedPrecondition(
            f"{path}: encrypted with key {header.key_id.hex()}, and no keys were given"
        )
    return keys.get(header.key_id)


def _place(header: SnapshotHeader, kind: int, number: int) -> bytes:
    return _PLACE.pack(
        MAGIC, check_cluster_id(header.cluster_id), header.raft_id, kind, header.index,
        header.term, number,
    )  # fmt: skip


def _chunks(records: Iterable[SnapshotRecord]) -> Iterator[tuple[bytes, int]]:
    """Chunks with the number of records that end in each; only larger records are cut."""
    parts: list[bytes] = []
    size = number = 0
    for record in records:
        framed = _encode_record(record)
        if size and size + len(framed) > CHUNK_BYTES_MAX:
            yield b"".join(parts), number
            parts, size, number = [], 0, 0
        while len(framed) > CHUNK_BYTES_MAX:
            yield framed[:CHUNK_BYTES_MAX], 0
            framed = framed[CHUNK_BYTES_MAX:]
        parts.append(framed)
        size, number = size + len(framed), number + 1
    if size:
        yield b"".join(parts), number


def _encode_record(record: SnapshotRecord) -> bytes:
    if not 0 <= record.kind <= KIND_MAX:
        raise InvalidArgument(f"kind of a snapshot record: {record.kind} must be 0 to {KIND_MAX}")
    if len(record.data) > RECORD_BYTES_MAX:
        raise InvalidArgument(
            f"data of a snapshot record: {len(record.data)} bytes exceed {RECORD_BYTES_MAX}"
        )
    return _RECORD.pack(record.kind, len(record.data)) + record.data


def _split(buffer: bytes, path: Path, offset: int) -> tuple[list[SnapshotRecord], bytes]:
    """The complete records in `buffer` and the beginning of the next one."""
    records: list[SnapshotRecord] = []
    at = 0
    while at + _RECORD.size <= len(buffer):
        kind, size = _RECORD.unpack_from(buffer, at)
        if size > RECORD_BYTES_MAX:
            raise _corrupt(path, offset, "a record is larger than any writer makes")
        end = at + _RECORD.size + size
        if end > len(buffer):
            break
        records.append(SnapshotRecord(kind, buffer[at + _RECORD.size : end]))
        at = end
    return records, buffer[at:]


def _encode_header(header: SnapshotHeader) -> bytes:
    cluster = check_cluster_id(header.cluster_id)
    try:
        body = _HEADER.pack(
            MAGIC, header.version, HEADER_BYTES, cluster, header.index, header.term,
            header.key_id, header.raft_id,
        )  # fmt: skip
    except struct.error as error:
        raise InvalidArgument(f"snapshot index or term out of range: {error}") from None
    return body + struct.pack("<I", extend(0, body))


def _frame(kind: int, body: bytes, chain: int) -> tuple[bytes, int]:
    crc = extend(extend(chain, struct.pack("<II", len(body), kind)), body)
    return _CHUNK.pack(len(body), crc, kind) + body, crc


def _corrupt(path: Path, offset: int, reason: str) -> CorruptSnapshot:
    return CorruptSnapshot(f"{path}: offset {offset}: {reason}", file=str(path), offset=offset)
