"""Shoal's errors on gRPC: status code, message, and our own code in the trailing metadata."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, NoReturn

import grpc
import structlog
from typing_extensions import override

from shoal.errors import ERROR_BY_CODE, Code, Internal, SwarmError, Unavailable

CODE_KEY = "shoal-code"
MESSAGE_BYTES_MAX = 2_000
"""A message travels in the trailers, which gRPC limits to 8 KiB, up to three bytes a byte."""

STATUS_BY_CODE: dict[Code, grpc.StatusCode] = {
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.NAME_CONFLICT: grpc.StatusCode.ALREADY_EXISTS,
    Code.SEQUENCE_CONFLICT: grpc.StatusCode.ABORTED,
    Code.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.NOT_LEADER: grpc.StatusCode.UNAVAILABLE,
    Code.NOT_BEGUN: grpc.StatusCode.UNAVAILABLE,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.UNREACHABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.UNAUTHENTICATED: grpc.StatusCode.UNAUTHENTICATED,
    Code.UNIMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}

_CODE_BY_STATUS: dict[grpc.StatusCode, Code] = {
    status: code for code, status in reversed(list(STATUS_BY_CODE.items()))
} | {
    grpc.StatusCode.UNAVAILABLE: Code.UNAVAILABLE,
    grpc.StatusCode.ALREADY_EXISTS: Code.ALREADY_EXISTS,
    grpc.StatusCode.CANCELLED: Code.UNAVAILABLE,  # the channel was closed, or the server stopped
    grpc.StatusCode.OUT_OF_RANGE: Code.INVALID_ARGUMENT,
}

BROKEN_WRITE = "Internal error from Core"
"""grpc.aio's words, with status INTERNAL, for a write that failed. They take the place of how the
call ended, which cannot be learnt any more."""

_log = structlog.get_logger()


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: SwarmError) -> NoReturn:
    """End the call with the error."""
    encoded = error.message.encode("utf-8", "replace")
    message = encoded[:MESSAGE_BYTES_MAX].decode("utf-8", "ignore")
    if len(encoded) > MESSAGE_BYTES_MAX:
        message += " ..."
    await context.abort(STATUS_BY_CODE[error.code], message, ((CODE_KEY, error.code.value),))


def from_rpc_error(error: grpc.aio.AioRpcError) -> SwarmError:
    """The error a server sent, or the one that stands for a failed connection."""
    if _is_broken_write(error):
        return Unavailable(
            "the call broke off while a request was being sent: the connection failed, or the other"
            " side ended the call before it had read everything"
        )
    code = _code(error) or _CODE_BY_STATUS.get(error.code(), Code.INTERNAL)
    return ERROR_BY_CODE[code](error.details() or error.code().name)


def is_lost(error: grpc.aio.AioRpcError) -> bool:
    """Whether the connection failed: whoever was asked has not said this, nor anything else."""
    # CANCELLED is what a server says that stops: our own cancellations are no such error.
    unsaid = error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    return (unsaid and _code(error) is None) or _is_broken_write(error)


def _is_broken_write(error: grpc.aio.AioRpcError) -> bool:
    """Servers of ours name their code, also of an internal error; the library cannot."""
    internal = error.code() is grpc.StatusCode.INTERNAL and error.details() == BROKEN_WRITE
    return internal and not error.trailing_metadata()


def _code(error: grpc.aio.AioRpcError) -> Code | None:
    """The code that the server named, None if it named none that is known."""
    trailing = error.trailing_metadata()
    try:
        return Code(None if trailing is None else trailing.get(CODE_KEY))
    except ValueError:
        return None


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns a SwarmError of any servicer into its status, and anything else into INTERNAL.

    An unexpected exception is logged and ends the one call, never the daemon.
    """

    def __init__(self) -> None:
        self._wrapped: dict[str, tuple[Any, Any]] = {}  # of methods that somebody serves

    @override
    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """Wrap the handler; once, for as long as the method has the same one."""
        handler = await continuation(details)
        if handler is None:
            return handler
        method = details.method
        known, wrapped = self._wrapped.get(method, (None, None))
        if known is not handler:
            wrapped = _wrapped(handler, method)
            self._wrapped[method] = handler, wrapped
        return wrapped


def _wrapped(handler: Any, method: str) -> Any:
    """Wrap the handler's four possible shapes."""
    if handler.response_streaming:
        wrapped = _streaming(handler.unary_stream or handler.stream_stream, method)
    else:
        wrapped = _single(handler.unary_unary or handler.stream_unary, method)
    shape = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[(handler.request_streaming, handler.response_streaming)]
    return shape(wrapped, handler.request_deserializer, handler.response_serializer)


def _single(behavior: Any, method: str) -> Any:
    async def call(request: Any, context: Any) -> Any:
        try:
            return await behavior(request, context)
        except Exception as error:  # noqa: BLE001 - the boundary: one bad request, one failed call
            await _end(context, error, method)

    return call


def _streaming(behavior: Any, method: str) -> Any:
    async def call(request: Any, context: Any) -> Any:
        try:
            async with aclosing(behavior(request, context)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:  # noqa: BLE001 - the boundary: one bad request, one failed call
            await _end(context, error, method)

    return call


async def _end(context: Any, error: Exception, method: str) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, grpc.aio.AioRpcError):  # a forwarded call failed: pass its status on
        error = from_rpc_error(error)
    if isinstance(error, SwarmError):
        await abort(context, error)
    _log.error("rpc.failed", method=method, exc_info=error)
    try:
        await abort(context, Internal(f"{method} failed: {type(error).__name__}: {error}"))
    except grpc.aio.UsageError:
        # It was ended before, and what went wrong is that its client had gone by then. Of all
        # that can be raised here, gRPC takes this alone for the end of a call nobody waits for.
        raise asyncio.CancelledError from error
