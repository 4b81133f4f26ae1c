"""Passes a call on as bytes: it knows no message.

One shape serves all four kinds of calls, since on the wire a call is two streams of messages. Each
message is taken from one side only when the other has taken the one before, so nothing piles up
here. Metadata, deadline, cancellation, status and trailing metadata pass through unchanged. A call
is made once; `Attempt` says how far it came, for those who may make it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Protocol

import grpc
from google.protobuf import descriptor_pool

from shoal.errors import Unavailable
from shoal.wire.errors import CODE_KEY, STATUS_BY_CODE, from_rpc_error, is_lost

Pairs = tuple[tuple[str, str | bytes], ...]

_OWN_METADATA = ("grpc-", ":", "user-agent", "content-type", "te", "host")


class Connecting(Protocol):
    """A streaming call of `grpc.aio`."""

    async def wait_for_connection(self) -> None:
        """Wait until its metadata was sent."""
        ...

    def cancel(self) -> bool:
        """End it."""
        ...


class Upstream(Protocol):
    """Where calls are passed on to."""

    @property
    def label(self) -> str:
        """What it is called in errors: `the manager process`."""
        ...

    async def channel(self) -> grpc.aio.Channel:
        """A channel to it. Raises: Unavailable with the reason."""
        ...

    async def connected(self, call: Connecting) -> None:
        """Wait until a `wait_for_ready` call is under way. Raises: Unavailable."""
        ...


class Attempt:
    """One try to make a client's call at an upstream.

    sent: a request, or the end of the requests, may have come there; before that nothing can have
    been done. answered: something was said, which the client knows or is about to.
    """

    def __init__(self, upstream: Upstream, method: str, context: Any, extra: Pairs = ()) -> None:
        """extra: metadata in addition to the client's."""
        self.sent = False
        self.answered = False
        self._upstream = upstream
        self._method = method
        self._context = context
        self._extra = extra

    async def answers(self, requests: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The answers. Raises: AioRpcError as the call ended; Unavailable without a connection."""
        context = self._context
        channel = await self._upstream.channel()
        call: Any = channel.stream_stream(self._method)(
            metadata=(*own_metadata(context.invocation_metadata()), *self._extra),
            timeout=context.time_remaining(),
            wait_for_ready=True,
        )
        # gRPC does not close our generator when the client goes away between two messages.
        context.add_done_callback(lambda _: call.cancel())
        pump: asyncio.Task[None] | None = None
        try:
            await self._upstream.connected(call)
            pump = asyncio.create_task(self._pump(requests, call), name=f"relay {self._method}")
            given = own_metadata(await call.initial_metadata())
            if given:
                self.answered = True
                await context.send_initial_metadata(given)
            while (response := await call.read()) is not grpc.aio.EOF:
                self.answered = True
                yield response
            if await call.code() is not grpc.StatusCode.OK:
                raise await _as_error(call)
            context.set_trailing_metadata(own_metadata(await call.trailing_metadata()))
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: the channel was closed under the call.
            raise Unavailable(f"the connection to {self._upstream.label} was closed") from None
        finally:
            call.cancel()
            if pump is not None:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)

    async def end_as(self, error: grpc.aio.AioRpcError) -> None:
        """End the client's call as this one was ended."""
        trailing = own_metadata(error.trailing_metadata() or ())
        status, details = error.code(), error.details() or ""
        if not any(key == CODE_KEY for key, _ in trailing):
            meant = from_rpc_error(error)
            if is_lost(error):
                status = STATUS_BY_CODE[meant.code]
                details = f"{self._upstream.label} {self._fate}: {meant.message}"
            trailing += ((CODE_KEY, meant.code.value),)
        await self._context.abort(status, details, trailing)

    @property
    def _fate(self) -> str:
        if self.sent:
            return "went away during the call, which may or may not have been carried out"
        return "went away before the call was sent"

    async def _pump(self, requests: AsyncIterator[bytes], call: Any) -> None:
        """Client to process, one message at a time. How the call ended is the reader's to tell.

        The end of a single request is not told: nobody waits for it, and where the answer comes
        first, gRPC says that the end could not be told in place of what was answered.
        """
        single = not streams_requests(self._method)
        try:
            async for request in requests:
                self.sent = True
                await call.write(request)
                if single:
                    return
            self.sent = True
            await call.done_writing()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return
        except Exception:
            call.cancel()
            raise


def streams_requests(method: str) -> bool:
    """Whether a call may have more than one request; also true of what is no method of ours."""
    service, _, name = method.removeprefix("/").rpartition("/")
    try:
        found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    except KeyError:
        return True
    return bool(found.client_streaming)


async def relay(
    upstream: Upstream, method: str, requests: AsyncIterator[bytes], context: Any
) -> AsyncGenerator[bytes, None]:
    """The answers to a call that is made again, once, at `upstream`."""
    attempt = Attempt(upstream, method, context)
    try:
        async with aclosing(attempt.answers(requests)) as answers:
            async for answer in answers:
                yield answer
    except grpc.aio.AioRpcError as error:
        await attempt.end_as(error)


def own_metadata(pairs: Any) -> Pairs:
    """What of the metadata is the caller's; the rest belongs to each connection."""
    return tuple((key, value) for key, value in pairs if not key.startswith(_OWN_METADATA))


async def _as_error(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )
