"""One watcher: it follows the cluster over one node, and resumes or begins anew when it must.

A watch that ends is asked for again from the last version seen. Only when the manager cannot
replay from there a new session begins: first the watch, then a read, so that nothing falls between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import grpc

from shoal.api.v1 import control_pb2, watch_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.api.v1.objects_pb2 import ActionKind
from shoal.api.v1.watch_pb2_grpc import WatchStub
from tests.linearizability.watching import Event, Identity, Message, Session

FIRST_MESSAGE_S = 10.0
PAUSE_S = 0.1

_ACTIONS = {
    ActionKind.ACTION_KIND_CREATE: "create",
    ActionKind.ACTION_KIND_UPDATE: "update",
    ActionKind.ACTION_KIND_REMOVE: "remove",
}


class Watcher:
    """Watches over one socket. `sessions()` is what it saw; `last` how far it has come."""

    def __init__(self, name: str, socket: str) -> None:
        self.name = name
        self._target = f"unix:{socket}"
        self._sessions: list[Session] = []
        self._messages: list[Message] = []
        self.resumed = 0

    @property
    def last(self) -> int:
        """The version of the last message, 0 before the first."""
        if self._messages:
            return self._messages[-1].version
        return self._sessions[-1].start if self._sessions else 0

    def sessions(self) -> list[Session]:
        """Everything so far."""
        return [*self._sessions[:-1], *([self._current()] if self._sessions else [])]

    async def run(self, stopping: Callable[[], bool]) -> None:
        """Watch until cancelled or told to stop."""
        while not stopping():
            options = [("grpc.use_local_subchannel_pool", 1)]
            async with grpc.aio.insecure_channel(self._target, options=options) as channel:
                # Whatever ended it: ask again.
                with contextlib.suppress(grpc.aio.AioRpcError, TimeoutError, EOFError):
                    await self._watch(channel)
            await asyncio.sleep(PAUSE_S)

    async def _watch(self, channel: grpc.aio.Channel) -> None:
        """Follow until the stream ends, which raises."""
        stream = await self._resume(channel) or await self._begin(channel)
        while True:
            message = _not_ended(await stream.read())
            self._messages.append(message_of(message))

    async def _resume(self, channel: grpc.aio.Channel):
        if not self._sessions:
            return None
        request = watch_pb2.WatchRequest(include_old_object=True)
        request.resume_from.index = self.last
        stream = WatchStub(channel).Watch(request)
        try:
            async with asyncio.timeout(FIRST_MESSAGE_S):
                _not_ended(await stream.read())
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return None
            raise
        self.resumed += 1
        return stream

    async def _begin(self, channel: grpc.aio.Channel):
        stream = WatchStub(channel).Watch(watch_pb2.WatchRequest(include_old_object=True))
        async with asyncio.timeout(FIRST_MESSAGE_S):
            first = _not_ended(await stream.read())
            read = await _read(channel)
        if self._sessions:
            self._sessions[-1] = self._current()
        self._sessions.append(Session(self.name, first.version.index, read, ()))
        self._messages = []
        return stream

    def _current(self) -> Session:
        last = self._sessions[-1]
        return Session(last.watcher, last.start, last.read, tuple(self._messages))


def message_of(message: watch_pb2.WatchMessage) -> Message:
    """A message as the validators take it."""
    return Message(message.version.index, tuple(_event(event) for event in message.events))


def _event(event: watch_pb2.WatchEvent) -> Event:
    kind = event.object.WhichOneof("object") or "?"
    row = getattr(event.object, kind)
    old_kind = event.old_object.WhichOneof("object")
    before = getattr(event.old_object, old_kind).meta.version.index if old_kind else 0
    action = _ACTIONS[event.action]
    return Event(
        kind=kind,
        object_id=row.id,
        name=row.spec.annotations.name if kind == "service" else "",
        action=action,
        before=before,
        after=0 if action == "remove" else row.meta.version.index,
    )


def _not_ended(message: object) -> watch_pb2.WatchMessage:
    if not isinstance(message, watch_pb2.WatchMessage):
        raise EOFError("the server ended the stream")  # noqa: TRY004 - EOF is no fault of types
    return message


async def _read(channel: grpc.aio.Channel) -> dict[Identity, int]:
    """Every service's version."""
    found: dict[Identity, int] = {}
    request = control_pb2.ListServicesRequest()
    while True:
        page = await ControlStub(channel).ListServices(request)
        found |= {("service", one.id): one.meta.version.index for one in page.services}
        request.page_token = page.next_page_token
        if not request.page_token:
            return found
