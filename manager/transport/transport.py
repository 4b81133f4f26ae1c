"""All other managers: one `Peer` each, their addresses, and snapshots on the way.

Implements `manager.consensus.interfaces.Transport`; `server.RaftServer` is its ear.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc
import msgspec
import structlog

from manager.consensus.interfaces import Receiver
from manager.consensus.roster import Member, Roster
from manager.raft.messages import Message
from manager.transport.metadata import metadata
from manager.transport.peer import Dial, Peer
from manager.transport.snapshots import Incoming, send, snapshot_name
from shoal.aio.backoff import Backoff
from shoal.aio.cancel import raise_if_cancelled
from shoal.api.v1.raft_pb2_grpc import RaftStub
from shoal.errors import SwarmError, Unavailable, Unreachable, invariant

SNAPSHOT_ATTEMPTS_MAX = 6
INTRODUCED_MAX = 16
PROBE_TIMEOUT_S = 5.0
_RESTART_PAUSE_S = 1.0

_log = structlog.get_logger()


class GrpcTransport:
    """`async with` it around the driver; attach the driver inside."""

    def __init__(self, me: Member, dial: Dial) -> None:
        self.me = me
        self.addresses: dict[int, str] = {}
        self._introduced: dict[int, Member] = {}
        self._dial = dial
        self._receiver: Receiver | None = None
        self._peers: dict[int, Peer] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._snapshots: dict[int, asyncio.Task[None]] = {}
        self._incoming: Incoming | None = None

    async def __aenter__(self) -> Self:
        """Nothing is connected before members are known."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every stream."""
        self.close()
        await asyncio.gather(*self._ending, return_exceptions=True)

    @property
    def receiver(self) -> Receiver:
        """Who takes what arrives."""
        invariant(self._receiver is not None, "the transport has no receiver yet")
        return self._receiver  # type: ignore[return-value]

    def attach(self, receiver: Receiver) -> None:
        """Deliver to `receiver` from now on."""
        self._receiver = receiver

    def close(self) -> None:
        """Begin to end every stream, and send nothing more."""
        if self._incoming is not None:
            self._incoming.end()
        for task in (*self._tasks.values(), *self._snapshots.values()):
            self._end(task)
        self._tasks.clear()
        self._peers.clear()
        self._snapshots.clear()

    def follow(self, roster: Roster) -> None:
        """Connect to these members and to nobody else."""
        for raft_id in (roster.members.keys() | roster.removed) & self._introduced.keys():
            del self._introduced[raft_id]
        wanted = {
            raft_id: self._current(member)
            for raft_id, member in {**self._introduced, **roster.members}.items()
            if raft_id != self.me.raft_id
        }
        for raft_id in self._peers.keys() - wanted.keys():
            del self._peers[raft_id]
            self._end(self._tasks.pop(raft_id))
        for raft_id, member in wanted.items():
            peer = self._peers.get(raft_id)
            if peer is not None:
                peer.move(member)
                continue
            peer = self._peers[raft_id] = Peer(self.me, member, self._dial, self.receiver)
            self._tasks[raft_id] = asyncio.create_task(
                self._keep(peer), name=f"raft peer {raft_id:x}"
            )

    def send(self, messages: Sequence[Message]) -> None:
        """Queue messages; those for strangers are dropped."""
        for message in messages:
            peer = self._peers.get(message.to)
            if peer is not None:
                peer.send(message)

    def send_snapshot(self, message: Message) -> None:
        """Send a snapshot; one to a member at a time."""
        old = self._snapshots.get(message.to)
        if old is not None and not old.done():
            self._end(old)
        self._snapshots[message.to] = asyncio.create_task(
            self._send_snapshot(message), name=f"raft snapshot to {message.to:x}"
        )

    def heard_from(self, member: Member) -> None:
        """A manager says where it can be reached.

        It may have moved; or this one, which joins or lags behind, has to answer somebody whose
        addition it has not seen yet.
        """
        raft_id = member.raft_id
        if not member.address:
            return
        if self.addresses.get(raft_id) != member.address:
            self.addresses[raft_id] = member.address
            peer = self._peers.get(raft_id)
            if peer is not None:
                peer.move(self._current(peer.member))
        self.introduce([member])

    def introduce(self, members: Iterable[Member]) -> None:
        """Talk to these too, until the log says who the members are."""
        roster = self.receiver.roster
        for member in members:
            known = member.raft_id in roster.members or member.raft_id in roster.removed
            if not known and len(self._introduced) < INTRODUCED_MAX:
                self._introduced.setdefault(member.raft_id, member)
        self.follow(roster)

    async def probe(self, member: Member) -> None:
        """Open a stream to a manager and close it.

        Raises: Unreachable when it is not there, Unavailable when that cannot be told.
        """
        try:
            async with (
                asyncio.timeout(PROBE_TIMEOUT_S),
                self._dial(member.address) as channel,
            ):
                pairs = metadata(self.me.raft_id, member.raft_id, address=self.me.address)
                call: Any = RaftStub(channel).Stream(metadata=pairs, wait_for_ready=True)
                answer = await call.read()
                call.cancel()
        except TimeoutError:
            raise Unreachable(
                f"{member.address} does not answer: the other managers must reach this one there;"
                " check --advertise-addr and firewalls"
            ) from None
        except grpc.aio.AioRpcError as error:
            raise Unavailable(f"{member.address}: {error.details()}") from error
        if answer is grpc.aio.EOF or answer.raft_id != member.raft_id:
            raise Unreachable(f"{member.address} is not manager {member.raft_id:x}")

    def incoming(self, sender: int, name: str) -> Incoming:
        """The transfer of that snapshot: the one that broke off, or a new one."""
        old = self._incoming
        if old is not None:
            if (old.sender, old.name) == (sender, name) and not old.is_over:
                return old
            old.end()
        self._incoming = Incoming(sender, name, self.me.raft_id, self.receiver)
        return self._incoming

    def _current(self, member: Member) -> Member:
        address = self.addresses.get(member.raft_id)
        return member if address is None else msgspec.structs.replace(member, address=address)

    def _end(self, task: asyncio.Task[None]) -> None:
        task.cancel()
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _keep(self, peer: Peer) -> None:
        while True:
            try:
                await peer.run()
            except Exception as error:  # noqa: BLE001 - the boundary: one peer, not the manager
                _log.error("peer.failed", peer=f"{peer.member.raft_id:x}", exc_info=error)
            raise_if_cancelled()
            await asyncio.sleep(_RESTART_PAUSE_S)

    async def _send_snapshot(self, message: Message) -> None:
        name, to = snapshot_name(message), f"{message.to:x}"
        ok = False
        try:
            _log.info("snapshot.sending", to=to, snapshot=name)
            ok = await self._try_to_send(message, name)
        except Exception as error:  # noqa: BLE001 - the boundary: Raft is told, and tries again
            _log.warning("snapshot.not_sent", to=to, snapshot=name, reason=str(error))
        finally:
            self.receiver.report_snapshot(message.to, ok=ok)
        if ok:
            _log.info("snapshot.sent", to=to, snapshot=name)

    async def _try_to_send(self, message: Message, name: str) -> bool:
        snapshot = message.snapshot
        if snapshot is None:
            return False
        found = await asyncio.to_thread(self.receiver.open_snapshot, snapshot.index, snapshot.term)
        if found is None:
            return False
        backoff = Backoff(max_s=2.0)
        for attempt in range(1, SNAPSHOT_ATTEMPTS_MAX + 1):
            peer = self._peers.get(message.to)
            if peer is None:
                return False
            async with AsyncExitStack() as stack:
                channel = await stack.enter_async_context(self._dial(peer.member.address))
                pairs = metadata(self.me.raft_id, message.to, snapshot=name)
                call: Any = RaftStub(channel).SendSnapshot(metadata=pairs)
                stack.callback(call.cancel)
                try:
                    await send(call, found, message)
                except (grpc.aio.AioRpcError, SwarmError) as error:
                    if attempt == SNAPSHOT_ATTEMPTS_MAX:
                        raise
                    _log.info("snapshot.resuming", to=f"{message.to:x}", reason=str(error))
                else:
                    return True
            await asyncio.sleep(backoff.next_s())
        return False
