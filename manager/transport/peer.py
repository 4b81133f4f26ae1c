"""One other manager: a bounded queue and one long-lived stream that empties it.

Messages that wait go out together, in one frame a turn of the loop. One that only says how far the
log is committed waits a moment for company: most often the next entries are about to follow, and
say it as well, so that it need not go at all. When the queue is full, or the stream breaks,
messages are dropped and Raft is told that the member is unreachable: it sends what is still needed
again. Reconnects with a growing pause, to whatever the address is by then.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any, Protocol

import grpc
import structlog

from manager.consensus.interfaces import Receiver
from manager.consensus.roster import Member
from manager.raft.entries import KIND_CONF_CHANGE
from manager.raft.messages import Message, MessageKind
from manager.transport.codec import frames, message_bytes
from manager.transport.metadata import REMOVED_KEY, metadata
from shoal.aio.backoff import Backoff
from shoal.aio.cancel import raise_if_cancelled
from shoal.api.v1 import raft_pb2
from shoal.api.v1.raft_pb2_grpc import RaftStub
from shoal.errors import SwarmError, Unavailable

QUEUE_MESSAGES_MAX = 4096
QUEUE_BYTES_MAX = 32 << 20
UNCONNECTED_MESSAGES_MAX = 16
"""What is old news by the time there is a connection is not kept."""
CONNECT_TIMEOUT_S = 2.0
WRITE_TIMEOUT_S = 5.0
"""A peer that takes nothing for that long is given up; what it misses is sent again."""
WRITE_WATCH_S = 1.0
"""How often that is looked at: a timer for each write would cost more than what it guards."""
PAUSE_MAX_S = 1.0
LINGER_S = 0.01
"""How long word of a commit waits for other messages to go with."""

_log = structlog.get_logger()


class Dial(Protocol):
    """Opens channels to managers."""

    def __call__(self, address: str) -> grpc.aio.Channel:
        """A channel to HOST:PORT with this node's certificate."""
        ...


class Peer:
    """Owned by the transport, which keeps `run` running."""

    def __init__(self, me: Member, member: Member, dial: Dial, receiver: Receiver) -> None:
        self.member = member
        self.connected = False
        self._me = me
        self._dial = dial
        self._receiver = receiver
        self._queue: deque[Message] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._linger: asyncio.TimerHandle | None = None
        self._word: Message | None = None
        self._writing_since_s: float | None = None
        self._change_index = 0
        self._told_commit = 0
        self._refusal = ""

    def move(self, member: Member) -> None:
        """The member is at another address: leave the old one."""
        if member.address != self.member.address:
            self.member = member
            self._moved.set()

    def send(self, message: Message) -> None:
        """Queue a message, or drop it; never waits."""
        self._supersede(message)
        size = message_bytes(message)
        room = QUEUE_MESSAGES_MAX if self.connected else UNCONNECTED_MESSAGES_MAX
        if len(self._queue) >= room or self._bytes + size > QUEUE_BYTES_MAX:
            self._drop()
        self._queue.append(message)
        self._bytes += size
        if self._is_urgent(message):
            self._wake.set()
            return
        self._word = message
        if self._linger is None:
            loop = asyncio.get_running_loop()
            self._linger = loop.call_later(LINGER_S, self._wake.set)

    async def run(self) -> None:
        """Keep a stream to the member, for ever."""
        backoff = Backoff(max_s=PAUSE_MAX_S)
        while True:
            self._moved.clear()
            try:
                await self._stream(backoff.reset)
            except grpc.aio.AioRpcError as error:
                self._note(error)
            except SwarmError as error:
                _log.debug("peer.unreachable", peer=self._name, reason=error.message)
            finally:
                self.connected = False
                self._drop()
            raise_if_cancelled()
            await asyncio.sleep(backoff.next_s())

    @property
    def _name(self) -> str:
        return f"{self.member.raft_id:x}"

    async def _stream(self, connected: Callable[[], None]) -> None:
        async with AsyncExitStack() as stack:
            channel = await stack.enter_async_context(self._dial(self.member.address))
            pairs = metadata(self._me.raft_id, self.member.raft_id, address=self._me.address)
            call: Any = RaftStub(channel).Stream(metadata=pairs, wait_for_ready=True)
            stack.callback(call.cancel)
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    accepted = await call.read()
            except TimeoutError:
                raise Unavailable(f"{self.member.address} does not answer") from None
            if accepted is grpc.aio.EOF:
                raise await _as_error(call)
            connected()
            self.connected = True
            _log.info("peer.connected", peer=self._name, address=self.member.address)
            await self._first_of(
                self._write(call), self._read(call), self._moved.wait(), self._watch()
            )

    async def _write(self, call: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            waiting, self._queue, self._bytes = self._queue, deque(), 0
            for frame in frames(tuple(waiting)):
                self._writing_since_s = loop.time()
                try:
                    await call.write(raft_pb2.RaftFrame(messages=frame))
                except asyncio.InvalidStateError:
                    raise await _as_error(call) from None  # it has ended: this says how

            self._writing_since_s = None

    async def _watch(self) -> None:
        """End the stream when one write takes too long."""
        loop, self._writing_since_s = asyncio.get_running_loop(), None
        while True:
            await asyncio.sleep(WRITE_WATCH_S)
            since_s = self._writing_since_s
            if since_s is not None and loop.time() - since_s > WRITE_TIMEOUT_S:
                raise Unavailable(f"{self.member.address} takes nothing")

    async def _read(self, call: Any) -> None:
        """Nothing is said on this side after the first notice but how the stream ended."""
        while await call.read() is not grpc.aio.EOF:
            pass
        raise await _as_error(call)

    async def _first_of(self, *works: Any) -> None:
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _supersede(self, message: Message) -> None:
        """Drop a word of a commit that waits, when an append follows that says it as well."""
        word, self._word = self._word, None
        if word is None or not self._queue or self._queue[-1] is not word:
            return
        if message.kind is MessageKind.APPEND and message.term == word.term:
            self._queue.pop()
            self._bytes -= message_bytes(word)

    def _is_urgent(self, message: Message) -> bool:
        """Whether it must go at once: everything but word of a commit.

        Unless the membership changes with it: a member that does not know of that may be unable
        to elect a leader, should this one die.
        """
        if message.kind is not MessageKind.APPEND:
            return True
        for entry in message.entries:
            if entry.kind == KIND_CONF_CHANGE:
                self._change_index = entry.index
        if message.entries:
            return True
        told, self._told_commit = self._told_commit, message.commit
        return told < self._change_index <= message.commit

    def _drop(self) -> None:
        """What waits is lost."""
        if self._queue:
            self._queue.clear()
            self._bytes = 0
        self._receiver.report_unreachable(self.member.raft_id)

    def _note(self, error: grpc.aio.AioRpcError) -> None:
        trailing = error.trailing_metadata()
        if trailing is not None and trailing.get(REMOVED_KEY):
            self._receiver.report_removed(self.member.raft_id, error.details() or "")
        refused = error.code() is grpc.StatusCode.PERMISSION_DENIED
        reason = error.details() or "" if refused else ""
        if reason and reason != self._refusal:
            _log.warning("peer.refuses", peer=self._name, reason=reason)
        self._refusal = reason
        _log.debug(
            "peer.disconnected", peer=self._name, code=error.code().name, reason=error.details()
        )


async def _as_error(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )
