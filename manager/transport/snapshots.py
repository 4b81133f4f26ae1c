"""Snapshots on their own streams, in chunks, resumed where they broke off.

What travels is the records, not the file: each member seals its files with its own key. They make
one stream of bytes, which is the same every time it is read, so an offset says where to go on.
Invariants: a chunk is taken only at the offset it belongs to and with the right CRC; a snapshot is
kept whole or not at all. One is received at a time; another sender, or snapshot, ends the last one.
"""

from __future__ import annotations

import asyncio
import queue
import struct
from collections.abc import Iterator
from typing import Any

import google_crc32c

from manager.consensus.interfaces import Receiver
from manager.raft.messages import Message, MessageKind
from manager.storage.snapshot_dir import SnapshotFile
from manager.storage.snapshot_file import RECORD_BYTES_MAX, SnapshotRecord
from manager.transport.codec import decode_message, encode_message
from manager.transport.metadata import OFFSET_KEY
from shoal.api.v1.raft_pb2 import SnapshotChunk
from shoal.errors import InvalidArgument, Unavailable

CHUNK_BYTES = 1 << 20
CHUNKS_AHEAD = 4
"""Chunks in memory on the receiving side."""
RESUME_TIMEOUT_S = 30.0
"""How long a broken transfer waits for its sender."""
STEP_TIMEOUT_S = 10.0
"""For one chunk, or the first answer."""
KEEP_TIMEOUT_S = 120.0
"""From the last chunk to the snapshot being durable."""

_RECORD = struct.Struct("<HI")


def chunks(snapshot: SnapshotFile, message: Message, offset: int) -> Iterator[SnapshotChunk]:
    """The chunks from `offset` on; the first one introduces the snapshot. Blocking."""
    first = SnapshotChunk(message=encode_message(message), membership=snapshot.metadata)
    at = 0
    buffer = bytearray()
    pending = first
    for record in snapshot.records():
        buffer += _RECORD.pack(record.kind, len(record.data)) + record.data
        while len(buffer) >= CHUNK_BYTES:
            part, at = bytes(buffer[:CHUNK_BYTES]), at + CHUNK_BYTES
            del buffer[:CHUNK_BYTES]
            if at > offset:
                yield _filled(pending, part, at - CHUNK_BYTES, offset)
                pending = SnapshotChunk()
    last = _filled(pending, bytes(buffer), at, max(offset, at))
    last.last = True
    yield last


def _filled(chunk: SnapshotChunk, part: bytes, at: int, offset: int) -> SnapshotChunk:
    chunk.data = part[max(0, offset - at) :]
    chunk.offset = max(at, offset)
    chunk.crc = google_crc32c.value(chunk.data)
    return chunk


async def send(call: Any, snapshot: SnapshotFile, message: Message) -> None:
    """Send a snapshot over an open SendSnapshot call, from where the receiver wants it.

    Raises: AioRpcError, Unavailable, CorruptSnapshot.
    """
    try:
        async with asyncio.timeout(STEP_TIMEOUT_S):
            initial = await call.initial_metadata()
        offset = int(dict(initial).get(OFFSET_KEY, "0")) if initial is not None else 0
        parts = chunks(snapshot, message, offset)
        while (chunk := await asyncio.to_thread(next, parts, None)) is not None:
            async with asyncio.timeout(STEP_TIMEOUT_S):
                await call.write(chunk)
        await call.done_writing()
        async with asyncio.timeout(KEEP_TIMEOUT_S):
            await call
    except TimeoutError:
        raise Unavailable("the receiver of the snapshot does not go on") from None
    except asyncio.InvalidStateError:
        await call  # the call has ended: this raises how
        raise


class Incoming:
    """One snapshot on its way here."""

    def __init__(self, sender: int, name: str, own: int, receiver: Receiver) -> None:
        self.sender = sender
        self.name = name
        self.offset = 0
        self._own = own
        self._receiver = receiver
        self._parts: queue.Queue[bytes | None] = queue.Queue(CHUNKS_AHEAD)
        self._keeping: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more can come of it."""
        return self._ended or (self._keeping is not None and self._keeping.done())

    async def put(self, chunk: SnapshotChunk) -> None:
        """Take the next chunk. Raises: InvalidArgument; Unavailable when it was ended."""
        if self._keeping is None:
            self._begin(chunk)
        if chunk.offset != self.offset:
            raise InvalidArgument(f"snapshot: offset {chunk.offset}, expected {self.offset}")
        if google_crc32c.value(chunk.data) != chunk.crc:
            raise InvalidArgument(f"snapshot: the chunk at {chunk.offset} does not match its CRC")
        await self._hand_over(chunk.data)
        self.offset += len(chunk.data)
        if chunk.last:
            await self._hand_over(None)

    async def kept(self) -> None:
        """Wait until it is durable. Raises why it is not."""
        if self._keeping is not None:
            await asyncio.shield(self._keeping)

    def end(self) -> None:
        """Give it up."""
        self._ended = True

    def _begin(self, chunk: SnapshotChunk) -> None:
        message = decode_message(chunk.message)
        snapshot = message.snapshot
        if message.kind is not MessageKind.SNAPSHOT or snapshot is None:
            raise InvalidArgument("snapshot: the first chunk must hold the message")
        if (message.sender, message.to) != (self.sender, self._own):
            raise InvalidArgument("snapshot: the message is of, or for, another member")
        if snapshot_name(message) != self.name:
            raise InvalidArgument("snapshot: the message is of another one than the call")
        task = asyncio.create_task(
            self._receiver.receive_snapshot(message, chunk.membership, self._records()),
            name="raft receive snapshot",
        )
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._keeping = task

    async def _hand_over(self, data: bytes | None) -> None:
        while True:
            if self.is_over:
                await self.kept()  # raises why, if it failed
                raise Unavailable("snapshot: another one has taken its place")
            try:
                self._parts.put_nowait(data)
            except queue.Full:
                await asyncio.sleep(0.01)
            else:
                return

    def _records(self) -> Iterator[SnapshotRecord]:
        """In a thread: the records, as their bytes arrive."""
        buffer = b""
        while (part := self._next_part()) is not None:
            buffer += part
            at = 0
            while at + _RECORD.size <= len(buffer):
                kind, size = _RECORD.unpack_from(buffer, at)
                if size > RECORD_BYTES_MAX:
                    raise InvalidArgument(f"snapshot: a record of {size} bytes")
                end = at + _RECORD.size + size
                if end > len(buffer):
                    break
                yield SnapshotRecord(kind, buffer[at + _RECORD.size : end])
                at = end
            buffer = buffer[at:]
        if buffer:
            raise InvalidArgument("snapshot: it ends within a record")

    def _next_part(self) -> bytes | None:
        waited_s = 0.0
        while waited_s < RESUME_TIMEOUT_S:
            if self._ended:
                raise Unavailable("snapshot: another one has taken its place")
            try:
                return self._parts.get(timeout=0.25)
            except queue.Empty:
                waited_s += 0.25
        raise Unavailable("snapshot: its sender has gone away")


def snapshot_name(message: Message) -> str:
    """What both sides call it: the same name means the same bytes."""
    snapshot = message.snapshot
    if snapshot is None:
        raise InvalidArgument("snapshot: the message names none")
    return f"{snapshot.term:x}-{snapshot.index:x}"
