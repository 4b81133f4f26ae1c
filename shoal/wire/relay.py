"""Passes a call on as bytes: it knows no message.

One shape serves all four kinds of calls, since on the wire a call is two streams of messages. Each
message is taken from one side only when the other has taken the one before, so nothing piles up
here. Metadata, deadline, cancellation, status and trailing metadata pass through unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

import grpc

from shoal.wire.errors import CODE_KEY, from_rpc_error

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


async def relay(
    upstream: Upstream,
    method: str,
    requests: AsyncIterator[bytes],
    context: Any,
    *,
    extra: Pairs = (),
) -> AsyncGenerator[bytes, None]:
    """The answers to a call that is made again at `upstream`, with `extra` metadata."""
    channel = await upstream.channel()
    call: Any = channel.stream_stream(method)(
        metadata=(*own_metadata(context.invocation_metadata()), *extra),
        timeout=context.time_remaining(),
        wait_for_ready=True,
    )
    pump = asyncio.create_task(_pump(requests, call), name=f"relay {method}")
    # gRPC does not close our generator when the client goes away between two messages.
    context.add_done_callback(lambda _: call.cancel())
    try:
        await upstream.connected(call)
        await context.send_initial_metadata(own_metadata(await call.initial_metadata()))
        while (response := await call.read()) is not grpc.aio.EOF:
            yield response
        context.set_trailing_metadata(own_metadata(await call.trailing_metadata()))
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            await _end(context, upstream, await _as_error(call))
    except grpc.aio.AioRpcError as error:
        await _end(context, upstream, error)
    finally:
        call.cancel()
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


def own_metadata(pairs: Any) -> Pairs:
    """What of the metadata is the caller's; the rest belongs to each connection."""
    return tuple((key, value) for key, value in pairs if not key.startswith(_OWN_METADATA))


async def _pump(requests: AsyncIterator[bytes], call: Any) -> None:
    """Client to process, one message at a time. How the call ended is the reader's to tell."""
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        return
    except Exception:
        call.cancel()
        raise


async def _as_error(call: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        await call.code(),
        await call.initial_metadata(),
        await call.trailing_metadata(),
        details=await call.details(),
    )


async def _end(context: Any, upstream: Upstream, error: grpc.aio.AioRpcError) -> None:
    """End the client's call as ours was ended."""
    trailing = own_metadata(error.trailing_metadata() or ())
    details = error.details() or ""
    if not any(key == CODE_KEY for key, _ in trailing):
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            details = f"{upstream.label} went away during the call: {details}"
        trailing += ((CODE_KEY, from_rpc_error(error).code.value),)
    await context.abort(error.code(), details, trailing)
