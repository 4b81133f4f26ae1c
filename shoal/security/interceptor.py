"""The gate in front of every RPC of a server: identify the peer, then look at the table.

Behind it, `shoal.security.peer.current_peer()` names the caller, also when another manager passed
the call on. It serves async behaviours only (coroutines and async generators), which is all Shoal
has; a plain function is refused when it is first called rather than run unguarded.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, NoReturn, TypeAlias

import grpc
import structlog
from typing_extensions import override

from shoal.errors import PermissionDenied, SwarmError, invariant
from shoal.security.authorize import Permissions
from shoal.security.forwarded import forwarded_caller, forwarded_metadata
from shoal.security.peer import Caller, PeerVerifier, enter_caller, peer_address
from shoal.security.roles import PeerIdentity

_log = structlog.get_logger()

_Context = grpc.aio.ServicerContext[Any, Any]
# A string: the class is generic for type checkers only.
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Behaviour = Callable[[Any, _Context], Any]
_Admit = Callable[[_Context], Awaitable["_Admission"]]
Judge = Callable[[str, PeerIdentity], PeerIdentity]
"""From a method and a certified peer to what the peer is now. Raises: PermissionDenied."""


def _as_certified(method: str, identity: PeerIdentity) -> PeerIdentity:
    """For servers that know no more than the certificate says."""
    return identity


class AuthorizationInterceptor(grpc.aio.ServerInterceptor):
    """Admits a call only if the peer proved who it is and its role may call the method.

    A stream is looked at again with every message: who was removed or lost a role meanwhile gets
    and says no more. That its certificate has ended by then does not matter.
    """

    def __init__(
        self, verifier: PeerVerifier, permissions: Permissions, judge: Judge = _as_certified
    ) -> None:
        """judge: what a certified peer is by the newest word of the cluster."""
        self._verifier = verifier
        self._permissions = permissions
        self._judge = judge
        self._guarded: dict[str, tuple[_Handler, _Handler]] = {}  # of methods that somebody serves

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
        known = self._guarded.get(method)
        if known is None or known[0] is not handler:
            known = self._guarded[method] = handler, self._guard(handler, method)
        return known[1]

    def _guard(self, handler: _Handler, method: str) -> _Handler:
        async def admit(context: _Context) -> _Admission:
            try:
                peer = self._verifier.identify(context.peer(), context.auth_context())
                admission = _Admission(self, method, peer, context)
                enter_caller(admission.look())
            except SwarmError as error:
                await _refuse(context, method, error)
            return admission

        return _guarded(handler, admit)

    def check(self, method: str, caller: Caller) -> None:
        """Raise PermissionDenied unless the caller may call the method."""
        self._permissions.check(method, caller.identity)

    def judge(self, method: str, identity: PeerIdentity) -> PeerIdentity:
        """What a peer is now. Raises: PermissionDenied for one that was removed."""
        if not identity.role.certified:
            return identity
        self._verifier.refuse_removed(identity)
        return self._judge(method, identity)


class _Admission:
    """A call that was let in, and whether it still would be."""

    def __init__(
        self, gate: AuthorizationInterceptor, method: str, peer: PeerIdentity, context: _Context
    ) -> None:
        """peer: of the connection, as its certificate says."""
        self._gate = gate
        self._method = method
        self._peer = peer
        self._context = context
        self._address = peer_address(context.peer())
        self._forwarded = forwarded_metadata(context.invocation_metadata() or ())

    def look(self) -> Caller:
        """Who calls: the peer itself, or the one for whom another manager calls.

        Raises: PermissionDenied, InvalidArgument.
        """
        peer = self._gate.judge(self._method, self._peer)
        caller = forwarded_caller(self._forwarded, peer)
        if caller is None:
            caller = Caller(peer, self._address)
        else:
            identity = self._gate.judge(self._method, caller.identity)
            caller = Caller(identity, caller.address, forwarded=True)
        self._gate.check(self._method, caller)
        return caller

    async def renew(self) -> None:
        """End the call if it would not be let in now."""
        try:
            self.look()
        except SwarmError as error:
            await _refuse(self._context, self._method, error)


class _Requests:
    """The messages of a stream, for as long as its sender is let in."""

    def __init__(self, messages: AsyncIterator[Any], admission: _Admission) -> None:
        self._messages = messages
        self._admission = admission

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        message = await anext(self._messages)
        await self._admission.renew()
        return message


async def _refuse(context: _Context, method: str, error: SwarmError) -> NoReturn:
    denied = isinstance(error, PermissionDenied)
    status = grpc.StatusCode.PERMISSION_DENIED if denied else grpc.StatusCode.UNAUTHENTICATED
    _log.info("rpc.refused", method=method, peer=context.peer(), reason=error.message)
    await context.abort(status, error.message)


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
        _behind(behaviour, admit, streamed=handler.request_streaming),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )


def _behind(behaviour: Any, admit: _Admit, *, streamed: bool) -> _Behaviour:
    """The behaviour with the gate in front; gRPC tells the two async kinds apart by inspection."""

    async def answered(request: Any, context: _Context) -> Any:
        admission = await admit(context)
        return await behaviour(_Requests(request, admission) if streamed else request, context)

    async def generated(request: Any, context: _Context) -> AsyncIterator[Any]:
        admission = await admit(context)
        given = _Requests(request, admission) if streamed else request
        async with aclosing(behaviour(given, context)) as responses:
            async for response in responses:
                await admission.renew()
                yield response

    if inspect.iscoroutinefunction(behaviour):
        return answered
    invariant(inspect.isasyncgenfunction(behaviour), "an RPC behaviour must be async")
    return generated
