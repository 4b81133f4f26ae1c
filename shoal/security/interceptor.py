"""The gate in front of every RPC of a server: identify the peer, then look at the table.

Behind it, `shoal.security.peer.current_peer()` names the caller, also when another manager passed
the call on. It serves async behaviours only
(coroutines and async generators), which is all Shoal has; a plain function is refused when it is
first called rather than run unguarded.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
import structlog
from typing_extensions import override

from shoal.errors import PermissionDenied, SwarmError, invariant
from shoal.security.authorize import Permissions
from shoal.security.forwarded import forwarded_caller
from shoal.security.peer import Caller, PeerVerifier, enter_caller, peer_address

_log = structlog.get_logger()

_Context = grpc.aio.ServicerContext[Any, Any]
# A string: the class is generic for type checkers only.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behaviour = Callable[[Any, _Context], Any]
_Admit = Callable[[_Context], Awaitable[None]]


class AuthorizationInterceptor(grpc.aio.ServerInterceptor):
    """Admits a call only if the peer proved who it is and its role may call the method."""

    def __init__(self, verifier: PeerVerifier, permissions: Permissions) -> None:
        self._verifier = verifier
        self._permissions = permissions

    @override
    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        method = handler_call_details.method

        async def admit(context: _Context) -> None:
            enter_caller(await self._admit(method, context))

        return _guarded(handler, admit)

    async def _admit(self, method: str, context: _Context) -> Caller:
        try:
            caller = self._identify(context)
            self._permissions.check(method, caller.identity)
        except SwarmError as error:
            denied = isinstance(error, PermissionDenied)
            status = (
                grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.UNAUTHENTICATED
            )
            _log.info("rpc.refused", method=method, peer=context.peer(), reason=error.message)
            await context.abort(status, error.message)
        return caller

    def _identify(self, context: _Context) -> Caller:
        """Who is calling: the peer itself, or the one for whom another manager calls."""
        direct = self._verifier.identify(context.peer(), context.auth_context())
        forwarded = forwarded_caller(context.invocation_metadata() or (), direct)
        if forwarded is None:
            return Caller(direct, peer_address(context.peer()))
        self._verifier.refuse_removed(forwarded.identity)
        return forwarded


def _guarded(handler: _Handler, admit: _Admit) -> _Handler:
    """The same handler, behind `admit`."""
    make: Callable[..., _Handler]
    match (handler.request_streaming, handler.response_streaming):
        case (False, False):
            behaviour, make = handler.unary_unary, grpc.unary_unary_rpc_method_handler
        case (False, True):
            behaviour, make = handler.unary_stream, grpc.unary_stream_rpc_method_handler
        case (True, False):
            behaviour, make = handler.stream_unary, grpc.stream_unary_rpc_method_handler
        case _:
            behaviour, make = handler.stream_stream, grpc.stream_stream_rpc_method_handler
    return make(
        _behind(behaviour, admit),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _behind(behaviour: Any, admit: _Admit) -> _Behaviour:
    """The behaviour with the gate in front; gRPC tells the two async kinds apart by inspection."""

    async def answered(request: Any, context: _Context) -> Any:
        await admit(context)
        return await behaviour(request, context)

    async def generated(request: Any, context: _Context) -> AsyncIterator[Any]:
        await admit(context)
        async with aclosing(behaviour(request, context)) as responses:
            async for response in responses:
                yield response

    if inspect.iscoroutinefunction(behaviour):
        return answered
    invariant(inspect.isasyncgenfunction(behaviour), "an RPC behaviour must be async")
    return generated
