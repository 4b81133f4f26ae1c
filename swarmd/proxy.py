"""Passes calls for the node's other processes on, as bytes: it knows no message.

One shape serves all four kinds of calls, since on the wire a call is two streams of messages. Each
message is taken from one side only when the other has taken the one before, so nothing piles up
here. Metadata, deadline, cancellation, status and trailing metadata pass through unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from typing_extensions import override

from shoal.api.v1 import control_pb2, logs_pb2, node_pb2, watch_pb2
from shoal.errors import SwarmError
from shoal.wire.errors import CODE_KEY, abort, from_rpc_error
from swarmd.children import MANAGER, WORKER
from swarmd.upstream import Upstream

ROUTES: Mapping[str, str] = {
    control_pb2.DESCRIPTOR.services_by_name["Control"].full_name: MANAGER,
    logs_pb2.DESCRIPTOR.services_by_name["Logs"].full_name: MANAGER,
    watch_pb2.DESCRIPTOR.services_by_name["Watch"].full_name: MANAGER,
    node_pb2.DESCRIPTOR.services_by_name["Images"].full_name: WORKER,
}
"""Service -> the process that serves it. What is not here cannot be reached through swarmd."""

_OWN_METADATA = ("grpc-", ":", "user-agent", "content-type", "te", "host")

Refusal = Callable[[str], SwarmError | None]


class Proxy(grpc.GenericRpcHandler):
    """The handler of every service in ROUTES.

    upstreams: by process name. refuse: why calls for a process are refused now, None if not.
    """

    def __init__(self, upstreams: Mapping[str, Upstream], refuse: Refusal) -> None:
        self._upstreams = upstreams
        self._refuse = refuse

    @override
    def service(self, handler_call_details: Any) -> Any:
        """The handler of a method, None if it is not ours."""
        method: str = handler_call_details.method
        process = ROUTES.get(method.rpartition("/")[0].lstrip("/"))
        if process is None:
            return None
        upstream = self._upstreams[process]

        async def forward(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            error = self._refuse(process)
            if error is not None:
                await abort(context, error)
            async with aclosing(_forward(upstream, method, requests, context)) as responses:
                async for response in responses:
                    yield response

        return grpc.stream_stream_rpc_method_handler(forward)


async def _forward(
    upstream: Upstream, method: str, requests: AsyncIterator[bytes], context: Any
) -> AsyncGenerator[bytes, None]:
    channel = await upstream.channel()
    call: Any = channel.stream_stream(method)(
        metadata=_metadata(context.invocation_metadata()),
        timeout=context.time_remaining(),
        wait_for_ready=True,
    )
    pump = asyncio.create_task(_pump(requests, call), name=f"proxy {method}")
    # gRPC does not close our generator when the client goes away between two messages.
    context.add_done_callback(lambda _: call.cancel())
    try:
        await upstream.connected(call)
        await context.send_initial_metadata(_metadata(await call.initial_metadata()))
        while (response := await call.read()) is not grpc.aio.EOF:
            yield response
        context.set_trailing_metadata(_metadata(await call.trailing_metadata()))
        code = await call.code()
        if code is not grpc.StatusCode.OK:
            await _end(context, upstream, await _as_error(call))
    except grpc.aio.AioRpcError as error:
        await _end(context, upstream, error)
    finally:
        call.cancel()
        pump.cancel()
        await asyncio.gather(pump, return_exceptions=True)


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
    """End the client's call as the process ended ours."""
    trailing = _metadata(error.trailing_metadata() or ())
    details = error.details() or ""
    if not any(key == CODE_KEY for key, _ in trailing):
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            details = f"the {upstream.name} process went away during the call: {details}"
        trailing += ((CODE_KEY, from_rpc_error(error).code.value),)
    await context.abort(error.code(), details, trailing)


def _metadata(pairs: Any) -> tuple[tuple[str, str | bytes], ...]:
    """What of the metadata is the caller's; the rest belongs to each connection."""
    return tuple((key, value) for key, value in pairs if not key.startswith(_OWN_METADATA))
