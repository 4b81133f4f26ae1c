"""What we need of etcd's v3 API, over any of its members.

Requests that only read are tried again on another member until their deadline; a transaction is
sent once, since only its author can tell whether it may run twice. Every request asks the member to
refuse when it sees no leader. Tokens are renewed when etcd has forgotten them. A watch is pulled:
who reads slowly slows the server down, nothing queues up here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import grpc
from google.protobuf.message import Message

from manager.etcd.channels import Channels, Member
from manager.etcd.errors import from_rpc, is_stale_token
from manager.etcd.settings import EtcdSettings, password
from manager.etcd.watching import Assembler, Revision, WatchBroken
from shoal.errors import (
    DeadlineExceeded,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from shoal.etcd.v1 import rpc_pb2 as pb

PAGE_KEYS_MAX = 500
RETRY_PAUSE_S = 0.05
TOKENS_PER_CALL_MAX = 2

MessageT = TypeVar("MessageT", bound=Message)
Metadata = tuple[tuple[str, str], ...]
Stream = grpc.aio.StreamStreamCall[Any, Any]


class Page(NamedTuple):
    """Some keys of a range; all pages show the same revision."""

    revision: int
    kvs: tuple[pb.KeyValue, ...]


class Watch:
    """An open watch. Iterate it; every revision comes whole, once and in order."""

    def __init__(self, stream: Stream, member: Member, start_revision: int) -> None:
        self._stream = stream
        self._member = member
        self._assembler = Assembler(start_revision)

    async def request_progress(self) -> None:
        """Ask for the server's revision: it comes as a Revision without events.

        No barrier on servers before 3.4.25 and 3.5.8: there it may overtake events.
        """
        await self._stream.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))

    async def read(self) -> list[Revision]:
        """What the next answer completes, maybe nothing. Raises Compacted, Unavailable."""
        try:
            answer = await self._stream.read()
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, "watch", self._member.endpoint) from error
        if not isinstance(answer, pb.WatchResponse):
            raise WatchBroken(f"etcd {self._member.endpoint}: the watch has ended")
        return self._assembler.take(answer)

    async def __aiter__(self) -> AsyncIterator[Revision]:
        """All revisions from the start on."""
        while True:
            for revision in await self.read():
                yield revision


class EtcdClient:
    """`async with` it; safe for many callers at once."""

    def __init__(self, settings: EtcdSettings) -> None:
        self._settings = settings
        self._channels = Channels(settings)
        self._password = password(settings) if settings.user else ""
        self._token: str | None = None
        self._token_lock = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Open the channels; connects when the first request is made."""
        await self._channels.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the channels."""
        await self._channels.__aexit__(kind, error, traceback)

    async def range(self, request: pb.RangeRequest) -> pb.RangeResponse:
        """Keys and values. Raises Compacted when the revision is gone."""
        return await self._retried("KV/Range", request, pb.RangeResponse)

    async def pages(
        self, key: bytes, range_end: bytes, *, keys_max: int = PAGE_KEYS_MAX
    ) -> AsyncIterator[Page]:
        """Everything in [key, range_end) at one revision, the newest at the first page.

        Pages of up to keys_max keys, fewer where the values are large. Raises Compacted when the
        reading took longer than etcd keeps history: begin again.
        """
        revision = 0
        while True:
            request = pb.RangeRequest(
                key=key, range_end=range_end, limit=keys_max, revision=revision
            )
            try:
                answer = await self.range(request)
            except ResourceExhausted:
                if keys_max == 1:
                    raise
                keys_max = max(1, keys_max // 8)
                continue
            revision = revision or answer.header.revision
            yield Page(revision, tuple(answer.kvs))
            if not answer.more:
                return
            key = answer.kvs[-1].key + b"\0"

    async def txn(self, request: pb.TxnRequest) -> pb.TxnResponse:
        """A transaction, sent once.

        Raises: Unavailable before it was sent (`context["sent"]` is False) or when the connection
        broke; DeadlineExceeded. In the latter cases it may or may not have been carried out.
        """
        return await self._once("KV/Txn", request, pb.TxnResponse)

    async def compact(self, revision: int) -> None:
        """Forget the history before a revision. Raises Compacted when that is done already."""
        request = pb.CompactionRequest(revision=revision)
        await self._retried("KV/Compact", request, pb.CompactionResponse)

    async def status(self) -> pb.StatusResponse:
        """Version, size of the database and leader, as one member sees it."""
        return await self._retried("Maintenance/Status", pb.StatusRequest(), pb.StatusResponse)

    async def grant(self, ttl_s: int) -> int:
        """A lease that ends when it is not kept alive for ttl_s seconds. Result: its id."""
        request = pb.LeaseGrantRequest(ttl=ttl_s)
        return (await self._once("Lease/LeaseGrant", request, pb.LeaseGrantResponse)).id

    async def revoke(self, lease: int) -> None:
        """End a lease and remove its keys. Raises NotFound when it has ended already."""
        request = pb.LeaseRevokeRequest(id=lease)
        await self._once("Lease/LeaseRevoke", request, pb.LeaseRevokeResponse)

    async def keep_alive(self, lease: int, *, timeout_s: float) -> int:
        """Renew a lease. Result: seconds it has from now on.

        Raises: NotFound when it has ended; Unavailable, DeadlineExceeded when nobody answered.
        """
        request = pb.LeaseKeepAliveRequest(id=lease)
        try:
            async with asyncio.timeout(timeout_s):
                async with self._stream(
                    "Lease/LeaseKeepAlive", pb.LeaseKeepAliveResponse, timeout_s
                ) as (member, stream):
                    answer = await self._exchange(stream, member, request, "LeaseKeepAlive")
        except TimeoutError as error:
            raise DeadlineExceeded(f"etcd: lease: no answer within {timeout_s:g} s") from error
        if not isinstance(answer, pb.LeaseKeepAliveResponse):
            raise Unavailable("etcd: lease: the stream ended without an answer")
        if answer.ttl <= 0:
            raise NotFound(f"etcd: lease {lease:x} has ended")
        return answer.ttl

    @asynccontextmanager
    async def watch(
        self, key: bytes, range_end: bytes, *, start_revision: int, prev_kv: bool = False
    ) -> AsyncIterator[Watch]:
        """Watch [key, range_end) from a revision on; range_end empty: one key.

        Raises: Unavailable, DeadlineExceeded; the Watch raises Compacted, Unavailable.
        """
        create = pb.WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start_revision,
            prev_kv=prev_kv,
            fragment=True,
        )
        timeout_s = self._settings.timeout_s
        async with self._stream("Watch/Watch", pb.WatchResponse, timeout_s) as (member, stream):
            try:
                async with asyncio.timeout(timeout_s):
                    first = await self._exchange(
                        stream, member, pb.WatchRequest(create_request=create), "Watch"
                    )
            except TimeoutError as error:
                self._channels.failed(member)
                raise DeadlineExceeded(f"etcd {member.endpoint}: watch: no answer") from error
            if not isinstance(first, pb.WatchResponse) or first.canceled:
                self._token = None  # how etcd answers a watch whose token has ended
                reason = first.cancel_reason if isinstance(first, pb.WatchResponse) else "no answer"
                raise WatchBroken(f"etcd {member.endpoint}: watch refused: {reason}")
            yield Watch(stream, member, start_revision)

    async def _retried(self, name: str, request: Message, answer: type[MessageT]) -> MessageT:
        deadline_s = asyncio.get_running_loop().time() + self._settings.timeout_s
        while True:
            try:
                return await self._unary(name, request, answer, deadline_s)
            except Unavailable:
                if asyncio.get_running_loop().time() + RETRY_PAUSE_S >= deadline_s:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)

    async def _once(self, name: str, request: Message, answer: type[MessageT]) -> MessageT:
        deadline_s = asyncio.get_running_loop().time() + self._settings.timeout_s
        return await self._unary(name, request, answer, deadline_s)

    async def _unary(
        self, name: str, request: Message, answer: type[MessageT], deadline_s: float
    ) -> MessageT:
        tokens = 1
        while True:
            member, metadata = await self._prepare(deadline_s)
            left_s = max(0.01, deadline_s - asyncio.get_running_loop().time())
            try:
                return await _send(
                    member, name, request, answer, metadata=metadata, timeout_s=left_s
                )
            except grpc.aio.AioRpcError as error:
                if is_stale_token(error) and tokens < TOKENS_PER_CALL_MAX:
                    self._token = None
                    tokens += 1
                    continue
                found = from_rpc(error, name, member.endpoint)
                if isinstance(found, Unavailable | DeadlineExceeded):
                    self._channels.failed(member)
                raise found from error

    async def _prepare(self, deadline_s: float) -> tuple[Member, Metadata]:
        """A connected member and what goes along with each request."""
        try:
            member = await self._channels.connected(deadline_s)
            token = await self._current_token(member, deadline_s)
        except (Unavailable, DeadlineExceeded) as error:
            raise Unavailable(error.message, sent=False) from error
        metadata = (("hasleader", "true"),)
        return member, metadata if token is None else (*metadata, ("token", token))

    async def _current_token(self, member: Member, deadline_s: float) -> str | None:
        if not self._settings.user:
            return None
        async with self._token_lock:
            if self._token is None:
                left_s = max(0.01, deadline_s - asyncio.get_running_loop().time())
                request = pb.AuthenticateRequest(name=self._settings.user, password=self._password)
                name = "Auth/Authenticate"
                try:
                    answer = await _send(
                        member, name, request, pb.AuthenticateResponse, timeout_s=left_s
                    )
                except grpc.aio.AioRpcError as error:
                    self._channels.failed(member)
                    raise from_rpc(error, name, member.endpoint) from error
                self._token = answer.token
            return self._token

    @asynccontextmanager
    async def _stream(
        self, name: str, answer: type[MessageT], timeout_s: float
    ) -> AsyncIterator[tuple[Member, Stream]]:
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        member, metadata = await self._prepare(deadline_s)
        method = member.channel.stream_stream(
            f"/etcdserverpb.{name}",
            request_serializer=_serialize,
            response_deserializer=answer.FromString,
        )
        stream = method(metadata=metadata)
        try:
            yield member, stream
        except Unavailable:
            self._channels.failed(member)
            raise
        finally:
            stream.cancel()

    async def _exchange(
        self, stream: Stream, member: Member, request: Message, name: str
    ) -> object:
        """Send one message, read one."""
        try:
            await stream.write(request)
            return await stream.read()
        except grpc.aio.AioRpcError as error:
            if is_stale_token(error):
                self._token = None
            raise from_rpc(error, name, member.endpoint) from error
        except asyncio.InvalidStateError as error:  # the stream ended before it could be written
            raise Unavailable(f"etcd {member.endpoint}: {name}: the connection broke") from error


async def _send(
    member: Member,
    name: str,
    request: Message,
    answer: type[MessageT],
    *,
    metadata: Metadata = (),
    timeout_s: float,
) -> MessageT:
    method = member.channel.unary_unary(
        f"/etcdserverpb.{name}",
        request_serializer=_serialize,
        response_deserializer=answer.FromString,
    )
    try:
        result: MessageT = await method(request, timeout=timeout_s, metadata=metadata)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Not the caller: the channel was closed, which cancels what it carries.
        raise Unavailable(f"etcd {member.endpoint}: {name}: the client was closed") from None
    return result


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()
