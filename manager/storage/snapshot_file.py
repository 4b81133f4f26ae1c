"""The bytes of a snapshot file, format version 1: a stream of (kind, data) records.

Header, then chunks of at most 1 MiB of records with a CRC32C each (chained), then a trailer with
the number of records and a SHA-256 over everything before it. Records are opaque, in the order
of the writer. Refuses to yield anything from a file that does not verify to its last byte.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from manager.storage.errors import CorruptSnapshot
from manager.storage.frames import check_cluster_id, encrypted, extend
from shoal.errors import FailedPrecondition, InvalidArgument

MAGIC = b"SHOALSNP"
VERSION = 1
HEADER_BYTES = 128
CHUNK_BYTES_MAX = 1 << 20
RECORD_BYTES_MAX = 16 << 20
KIND_MAX = 0xFFFF

# magic, version, header bytes, cluster id, index, term, key id
_HEADER = struct.Struct("<8sII32sQQ16s44x")
_CHUNK = struct.Struct("<III")  # bytes, crc, type
_RECORD = struct.Struct("<HI")  # kind, bytes
_TRAILER = struct.Struct("<QQ32s")  # records, bytes of all chunks, SHA-256 of the file so far
_CHUNK_RECORDS, _CHUNK_TRAILER = 1, 2
_NO_KEY = bytes(16)


class SnapshotRecord(msgspec.Struct, frozen=True, gc=False):
    """One object of a snapshot; `kind` (0-65535) and `data` mean nothing here."""

    kind: int
    data: bytes


class SnapshotHeader(msgspec.Struct, frozen=True):
    """The state after entry `index` of `term`, in cluster `cluster_id`."""

    cluster_id: str
    index: int
    term: int


def encode(header: SnapshotHeader, records: Iterable[SnapshotRecord]) -> Iterator[bytes]:
    """The file, piece by piece; takes one record at a time and holds at most one chunk.

    Raises: InvalidArgument for a kind or size out of range.
    """
    digest = hashlib.sha256()
    head = _encode_header(header)
    digest.update(head)
    yield head
    (chain,) = struct.unpack_from("<I", head, HEADER_BYTES - 4)
    count = total = 0
    for chunk, number in _chunks(records):
        framed, chain = _frame(_CHUNK_RECORDS, chunk, chain)
        digest.update(framed)
        yield framed
        count, total = count + number, total + len(chunk)
    trailer, _ = _frame(_CHUNK_TRAILER, _TRAILER.pack(count, total, digest.digest()), chain)
    yield trailer


def read_header(file: BinaryIO, path: Path) -> tuple[SnapshotHeader, bytes]:
    """The header and its raw bytes; `file` is then at the first chunk.

    Raises: CorruptSnapshot; FailedPrecondition when a newer version wrote it.
    """
    raw = file.read(HEADER_BYTES)
    if len(raw) < HEADER_BYTES or raw[:8] != MAGIC:
        raise _corrupt(path, 0, "no snapshot header")
    _, version, _, cluster, index, term, key_id = _HEADER.unpack_from(raw)
    (crc,) = struct.unpack_from("<I", raw, HEADER_BYTES - 4)
    if extend(0, raw[: HEADER_BYTES - 4]) != crc:
        raise _corrupt(path, 0, "the header does not match its checksum")
    if version != VERSION:
        raise FailedPrecondition(
            f"{path}: snapshot format {version}, this version reads {VERSION}: run the newer one"
        )
    if key_id != _NO_KEY:
        raise encrypted(str(path))
    return SnapshotHeader(cluster.rstrip(b"\0").decode(), index, term), raw


def verify(path: Path) -> SnapshotHeader:
    """Read the whole file, in bounded memory, and check every byte of it.

    Raises: CorruptSnapshot; FailedPrecondition when a newer version wrote it.
    """
    with path.open("rb") as file:
        header, _ = read_header(file, path)
        file.seek(0)
        for _ in read_records(file, path):
            pass
    return header


def read_records(file: BinaryIO, path: Path) -> Iterator[SnapshotRecord]:
    """Yield the records of a file opened at its start; the trailer is checked at the end.

    Raises: CorruptSnapshot at the first byte that is wrong, maybe after some records.
    """
    _, raw = read_header(file, path)
    digest = hashlib.sha256(raw)
    (chain,) = struct.unpack_from("<I", raw, HEADER_BYTES - 4)
    rest, count, total, offset = b"", 0, 0, HEADER_BYTES
    while True:
        kind, framed, chain = _read_chunk(file, path, offset, chain)
        body = framed[_CHUNK.size :]
        if kind == _CHUNK_TRAILER:
            break
        digest.update(framed)
        total, offset = total + len(body), offset + len(framed)
        records, rest = _split(rest + body, path, offset)
        count += len(records)
        yield from records
    if rest or file.read(1):
        raise _corrupt(path, offset, "bytes after the last record")
    if len(body) != _TRAILER.size or _TRAILER.unpack(body) != (count, total, digest.digest()):
        raise _corrupt(path, offset, "the trailer does not match the records")


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
            MAGIC, VERSION, HEADER_BYTES, cluster, header.index, header.term, _NO_KEY
        )
    except struct.error as error:
        raise InvalidArgument(f"snapshot index or term out of range: {error}") from None
    return body + struct.pack("<I", extend(0, body))


def _frame(kind: int, body: bytes, chain: int) -> tuple[bytes, int]:
    crc = extend(extend(chain, struct.pack("<II", len(body), kind)), body)
    return _CHUNK.pack(len(body), crc, kind) + body, crc


def _read_chunk(file: BinaryIO, path: Path, offset: int, chain: int) -> tuple[int, bytes, int]:
    head = file.read(_CHUNK.size)
    if len(head) < _CHUNK.size:
        raise _corrupt(path, offset, "the file ends without a trailer")
    size, _, kind = _CHUNK.unpack(head)
    if size > CHUNK_BYTES_MAX or kind not in (_CHUNK_RECORDS, _CHUNK_TRAILER):
        raise _corrupt(path, offset, "no chunk header")
    framed, chain = _frame(kind, file.read(size), chain)
    if not framed.startswith(head):
        raise _corrupt(path, offset, "a chunk does not match its checksum")
    return kind, framed, chain


def _corrupt(path: Path, offset: int, reason: str) -> CorruptSnapshot:
    return CorruptSnapshot(f"{path}: offset {offset}: {reason}", file=str(path), offset=offset)
