"""The bytes of a log segment: its header and its records, format versions 1 and 2. Pure.

A record is `len u32 | crc u32 | type u8 | check u24 | payload | zeros | 0xA5`, padded to 8 bytes.
 - `crc` (CRC32C) covers everything else in the record and continues the crc before it, the first
   one the header's: a record is valid only after exactly its predecessors.
 - `check` binds length and type to the segment and the offset, so that a record can be recognised,
   and its length believed, when its payload or its predecessor is lost.
 - The last byte is never zero, so that a write which stopped early shows.
 - BEGIN and END flag a batch. One batch is written and synced before the next begins; a BEGIN
   found after damage therefore proves that the damaged batch had been durable.
 - In a segment with a key (version 2) the data of entries is sealed; everything else stays
   readable without a key, so that damage is judged the same way. One segment, one key.
Idea: etcd's wal encoder; check, end byte and batch flags are ours (docs/design/storage.md).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import google_crc32c
import msgspec

from manager.storage.entries import Entry, HardState, Record, SnapshotMark
from manager.storage.sealing import NO_KEY, SEAL_BYTES, Seal
from shoal.errors import FailedPrecondition, InvalidArgument, InvariantViolation

MAGIC = b"SHOALWAL"
VERSION = 1
VERSION_SEALED = 2
HEADER_BYTES = 128
ALIGN = 8
PAYLOAD_BYTES_MAX = 16 << 20
SEGMENT_BYTES_MAX = 1 << 31

TYPE_ENTRY, TYPE_HARD_STATE, TYPE_MARK, TYPE_KEY_ID = 1, 2, 3, 4
BEGIN, END = 0x80, 0x40
_TYPE_MASK = 0x3F
_TYPES = frozenset({TYPE_ENTRY, TYPE_HARD_STATE, TYPE_MARK, TYPE_KEY_ID})

# magic, version, header bytes, cluster id, raft id, seq, index, segment bytes, prev crc, key id
_HEADER = struct.Struct("<8sII32sQQQQI16s24x")
_FRAME = struct.Struct("<II4s")  # length, crc, type and check
FRAME_HEAD_BYTES = _FRAME.size
_SEALED = struct.Struct("<I4s")  # what the crc covers before the payload
_CHECKED = struct.Struct("<IIIB")  # header crc, offset, length, type
_ENTRY = struct.Struct("<QQB")
_HARD_STATE = struct.Struct("<QQQ")
_MARK = struct.Struct("<QQ")
# magic, cluster id, raft id, record type; index, term and kind follow: where an entry belongs
_HOME = struct.Struct("<8s32sQB")
_PADS = tuple(bytes(count) + b"\xa5" for count in range(ALIGN))
_U64_MAX = (1 << 64) - 1

extend = google_crc32c.extend

Unseal = Callable[[bytes, bytes], bytes]
"""(sealed, associated data) to plain bytes; raises `sealing.Unsealable`."""


class WalIdentity(msgspec.Struct, frozen=True):
    """Whose log it is; a log of another cluster or member is refused."""

    cluster_id: str
    raft_id: int


class SegmentHeader(msgspec.Struct, frozen=True):
    """First 128 bytes of a segment; `crc` seeds the chain of its records.

    With a `key_id` the segment is of version 2 and its entries are sealed with that key.
    """

    identity: WalIdentity
    seq: int
    index: int
    size_bytes: int
    prev_crc: int
    key_id: bytes = NO_KEY
    crc: int = 0


class Frame(msgspec.Struct, frozen=True, gc=False):
    """One valid record: its type, flags and payload, where it ends, its crc."""

    type: int
    flags: int
    payload: bytes
    end: int
    crc: int


class BadHeader(Exception):
    """The first 128 bytes are not a header of ours; the text says why."""


def encode_header(header: SegmentHeader) -> tuple[bytes, int]:
    """The 128 bytes of a header and its crc."""
    body = _HEADER.pack(
        MAGIC, VERSION if header.key_id == NO_KEY else VERSION_SEALED, HEADER_BYTES,
        check_cluster_id(header.identity.cluster_id), header.identity.raft_id, header.seq,
        header.index, header.size_bytes, header.prev_crc, header.key_id,
    )  # fmt: skip
    crc = extend(0, body)
    return body + struct.pack("<I", crc), crc


def decode_header(raw: bytes, path: str) -> SegmentHeader:
    """The header in the first 128 bytes of `raw`.

    Raises: BadHeader when damaged; FailedPrecondition when a newer version wrote it.
    """
    if len(raw) < HEADER_BYTES or raw[:8] != MAGIC:
        raise BadHeader("no segment header")
    _, version, _, cluster, raft_id, seq, index, size, prev_crc, key_id = _HEADER.unpack_from(raw)
    body = raw[: HEADER_BYTES - 4]
    (crc,) = struct.unpack_from("<I", raw, HEADER_BYTES - 4)
    if extend(0, body) != crc:
        raise BadHeader(f"segment header (format {version}) does not match its checksum")
    if version not in (VERSION, VERSION_SEALED):
        raise FailedPrecondition(
            f"{path}: log format {version}, this version reads {VERSION} to {VERSION_SEALED}:"
            " run the newer version"
        )
    if (version == VERSION_SEALED) == (key_id == NO_KEY):
        raise BadHeader(f"segment header (format {version}) with a key id that does not fit it")
    identity = WalIdentity(cluster_id=cluster.rstrip(b"\0").decode(), raft_id=raft_id)
    return SegmentHeader(identity, seq, index, size, prev_crc, key_id, crc)


def check_cluster_id(cluster_id: str) -> bytes:
    """The cluster id as stored: 1 to 32 printable ASCII characters."""
    if not (0 < len(cluster_id) <= 32 and cluster_id.isascii() and cluster_id.isprintable()):
        raise InvalidArgument(
            f"cluster_id: {cluster_id!r} must be 1 to 32 printable ASCII characters"
        )
    return cluster_id.encode()


def home(identity: WalIdentity) -> bytes:
    """What all sealed entries of a log are bound to: cluster, member, record type."""
    cluster = check_cluster_id(identity.cluster_id)
    return _HOME.pack(MAGIC, cluster, identity.raft_id, TYPE_ENTRY)


def frame_bytes(payload_bytes: int) -> int:
    """Size on disk of a record with that payload: at least one end byte, a multiple of 8."""
    return (_FRAME.size + payload_bytes + ALIGN) & -ALIGN


def encode_sealed(entry: Entry, home: bytes, seal: Seal) -> tuple[int, bytes]:
    """Type and payload of an entry whose data is sealed, bound to its home, index, term and kind.

    Raises: InvalidArgument for numbers or data out of range.
    """
    if len(entry.data) > PAYLOAD_BYTES_MAX - _ENTRY.size - SEAL_BYTES:
        raise _too_large(entry.index, entry.data)
    try:
        head = _ENTRY.pack(entry.index, entry.term, entry.kind)
    except struct.error as error:
        raise InvalidArgument(f"Entry: number out of range: {error}") from None
    return TYPE_ENTRY, head + seal(entry.data, home + head)


def unsealed(entry: Entry, home: bytes, unseal: Unseal) -> Entry:
    """The entry as it was before it was sealed. Raises: what `unseal` raises."""
    head = _ENTRY.pack(entry.index, entry.term, entry.kind)
    return Entry(entry.index, entry.term, entry.kind, unseal(entry.data, home + head))


def encode_payload(record: Record) -> tuple[int, bytes]:
    """Type and payload of a record. Raises: InvalidArgument for numbers or data out of range."""
    try:
        match record:
            case Entry(index, term, kind, data):
                if len(data) > PAYLOAD_BYTES_MAX - _ENTRY.size:
                    raise _too_large(index, data)
                return TYPE_ENTRY, _ENTRY.pack(index, term, kind) + data
            case HardState(term, vote, commit):
                return TYPE_HARD_STATE, _HARD_STATE.pack(term, vote, commit)
            case SnapshotMark(index, term):
                return TYPE_MARK, _MARK.pack(index, term)
    except struct.error as error:
        raise InvalidArgument(f"{type(record).__name__}: number out of range: {error}") from None


def decode_payload(frame: Frame, path: str) -> Record:
    """The record in a valid frame. Raises: FailedPrecondition for types of a newer version."""
    if frame.type == TYPE_ENTRY:
        index, term, kind = _ENTRY.unpack_from(frame.payload)
        return Entry(index, term, kind, frame.payload[_ENTRY.size :])
    if frame.type == TYPE_HARD_STATE:
        return HardState(*_HARD_STATE.unpack(frame.payload))
    if frame.type == TYPE_MARK:
        return SnapshotMark(*_MARK.unpack(frame.payload))
    if frame.type == TYPE_KEY_ID:
        raise FailedPrecondition(f"{path}: a record of a newer version: run that version")
    raise InvariantViolation(f"{path}: unknown record type {frame.type} passed its checks")


def encode_batch(
    payloads: Sequence[tuple[int, bytes]], *, offset: int, header_crc: int, chain: int
) -> tuple[bytes, int]:
    """The bytes of one batch at `offset` and the chain after it."""
    parts: list[bytes] = []
    last = len(payloads) - 1
    for position, (kind, payload) in enumerate(payloads):
        flagged = kind | (BEGIN if position == 0 else 0) | (END if position == last else 0)
        length = len(payload)
        size = (_FRAME.size + length + ALIGN) & -ALIGN
        tag = _tag(header_crc, offset, length, flagged)
        body = payload + _PADS[size - _FRAME.size - length - 1]
        chain = extend(chain, _SEALED.pack(length, tag) + body)
        parts += (_FRAME.pack(length, chain, tag), body)
        offset += size
    return b"".join(parts), chain


def peek_frame(data: bytes, offset: int, header_crc: int) -> tuple[int, int] | None:
    """(type with flags, end offset) of a record recognised by its check; payload unverified."""
    if offset + _FRAME.size >= len(data):
        return None
    length, _, tag = _FRAME.unpack_from(data, offset)
    flagged = tag[0]
    if flagged & _TYPE_MASK not in _TYPES or length > PAYLOAD_BYTES_MAX:
        return None
    if tag != _tag(header_crc, offset, length, flagged):
        return None
    return flagged, offset + frame_bytes(length)


def read_frame(data: bytes, offset: int, header_crc: int, chain: int) -> Frame | None:
    """The record at `offset` if it is valid after `chain`, else None."""
    peeked = peek_frame(data, offset, header_crc)
    if peeked is None or peeked[1] > len(data):
        return None
    flagged, end = peeked
    length, crc, tag = _FRAME.unpack_from(data, offset)
    start = offset + _FRAME.size
    if extend(chain, _SEALED.pack(length, tag) + data[start:end]) != crc:
        return None
    payload = data[start : start + length]
    return Frame(flagged & _TYPE_MASK, flagged & ~_TYPE_MASK, payload, end, crc)


def _too_large(index: int, data: bytes) -> InvalidArgument:
    return InvalidArgument(f"data of entry {index}: {len(data)} bytes exceed {PAYLOAD_BYTES_MAX}")


def _tag(header_crc: int, offset: int, length: int, flagged: int) -> bytes:
    check = extend(0, _CHECKED.pack(header_crc, offset, length, flagged))
    return bytes((flagged, check & 0xFF, check >> 8 & 0xFF, check >> 16 & 0xFF))
