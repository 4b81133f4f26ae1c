"""Reading one segment and judging its end: clean, torn by a crash, or damaged. Pure.

Only the batch that was being written when the machine stopped may be incomplete, and a crash
loses whole 512-byte sectors (they keep the zeros the segment was made of) or everything after
some byte. So the end is *torn* when no later batch follows and such a loss can be seen; anything
else, above all a flipped bit in the last acknowledged record, is *damaged* and never dropped.
Idea: etcd `wal/decoder.go` isTornEntry; the batch rule is ours.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from manager.storage.entries import Entry, Record
from manager.storage.frames import (
    ALIGN,
    BEGIN,
    END,
    FRAME_HEAD_BYTES,
    HEADER_BYTES,
    SegmentHeader,
    Unseal,
    decode_payload,
    home,
    peek_frame,
    read_frame,
    unsealed,
)
from manager.storage.sealing import Unsealable

SECTOR_BYTES = 512


class Ending(Enum):
    """How a segment ends."""

    CLEAN = "clean"
    TORN = "torn"
    DAMAGED = "damaged"


class Scan(msgspec.Struct, frozen=True):
    """Complete batches of a segment; `offset` and `chain` continue after the last of them.

    `bad_offset` is where reading stopped, `reason` why, when the ending is not clean;
    `dirty_end` is the end of the last byte that is not zero.
    """

    batches: tuple[tuple[Record, ...], ...]
    offset: int
    chain: int
    ending: Ending
    bad_offset: int = 0
    reason: str = ""
    dirty_end: int = 0


def scan_segment(
    data: bytes, header: SegmentHeader, path: str, *, unseal: Unseal | None = None
) -> Scan:
    """Read every complete batch and judge what follows.

    data: the whole file; unseal: opens the entries of a segment with a key. A record that its
    checksum vouches for but its key does not is damage, never a torn tail.
    Raises: FailedPrecondition for records of a newer version.
    """
    batches: list[tuple[Record, ...]] = []
    pending: list[Record] = []
    at_home = b"" if unseal is None else home(header.identity)
    offset, chain = HEADER_BYTES, header.crc
    good = (offset, chain)
    ending: tuple[Ending, str] | None = None
    while (frame := read_frame(data, offset, header.crc, chain)) is not None:
        if bool(frame.flags & BEGIN) == bool(pending):
            ending = (Ending.DAMAGED, "a batch begins inside another or without a beginning")
            break
        try:
            record = decode_payload(frame, path)
            if unseal is not None and isinstance(record, Entry):
                record = unsealed(record, at_home, unseal)
            pending.append(record)
        except Unsealable:
            ending = (Ending.DAMAGED, "an entry was changed or moved: its key does not open it")
            break
        offset, chain = frame.end, frame.crc
        if frame.flags & END:
            batches.append(tuple(pending))
            pending = []
            good = (offset, chain)
    dirty_end = len(data.rstrip(b"\0"))
    verdict, reason = ending or _judge(data, header, offset, dirty_end)
    if verdict is Ending.CLEAN and pending:
        verdict, reason = Ending.TORN, "the last batch is incomplete"
    return Scan(tuple(batches), *good, verdict, offset, reason, dirty_end)


def _judge(data: bytes, header: SegmentHeader, offset: int, dirty_end: int) -> tuple[Ending, str]:
    if dirty_end <= offset:
        return Ending.CLEAN, ""
    later = _later_batch(data, header.crc, offset, dirty_end)
    if later is not None:
        return Ending.DAMAGED, f"bad record, but a later batch follows at offset {later}"
    if _is_torn(data, header.crc, offset, dirty_end):
        return Ending.TORN, "the last batch is incomplete"
    return Ending.DAMAGED, "the last record does not match its checksum and was not cut short"


def _later_batch(data: bytes, header_crc: int, offset: int, dirty_end: int) -> int | None:
    """Offset of the first recognisable beginning of a batch after a bad record at `offset`."""
    for at in range(offset + ALIGN, dirty_end, ALIGN):
        if data[at + 8] & BEGIN if at + 8 < dirty_end else False:
            peeked = peek_frame(data, at, header_crc)
            if peeked is not None and peeked[1] <= len(data):
                return at
    return None


def _is_torn(data: bytes, header_crc: int, offset: int, dirty_end: int) -> bool:
    """Whether the bad record shows a sector that was never written, or stops before its end."""
    head_end = min(offset + FRAME_HEAD_BYTES, len(data))
    if _has_lost_sector(data, offset, head_end):
        return True
    peeked = peek_frame(data, offset, header_crc)
    if peeked is None:
        return dirty_end <= head_end
    _, end = peeked
    return end <= len(data) and (data[end - 1] == 0 or _has_lost_sector(data, offset, end))


def _has_lost_sector(data: bytes, start: int, end: int) -> bool:
    """Whether [start, end), cut at sector boundaries, has a piece that is all zero."""
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if not any(data[start:stop]):
            return True
        start = stop
    return False
