"""Calls that end when something else does: a leadership, or the connection to a leader.

A call is interrupted only while it works on its next answer: then it ends with the scope's error,
which its client sees. While an answer is being sent it is left alone; it ends right after.
Invariant: `NotBegun` is said of calls whose handler was never called, and what an interrupted call
has done by then is not denied. A refusal is told only when this manager still led after it was
decided: one that was paused and replaced would refuse by what it knew before.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, NoReturn

import grpc

from manager.consensus.waiting import UNKNOWN
from shoal.errors import (
    DeadlineExceeded,
    NotBegun,
    NotLeader,
    SwarmError,
    Unavailable,
    invariant,
)

Barrier = Callable[[], Awaitable[None]]

_CLAIMS_NOTHING = (NotLeader, Unavailable, DeadlineExceeded)
"""Errors that say nothing of the state, and so are never out of date."""


class Scope:
    """For as long as it lasts, calls may run in it."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._error: SwarmError | None = None

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._error is not None

    def end(self, error: SwarmError) -> None:
        """Interrupt what runs; it fails with the error, and so does what comes later."""
        if self._error is None:
            self._error = error
            for task in self._running:
                task.cancel()

    @contextmanager
    def entered(self, *, changes: bool = False) -> Iterator[None]:
        """Run the current task's next step in the scope.

        changes: the step may have changed something by the time it is interrupted. Raises: the
        scope's error; Unavailable when such a step was interrupted.
        """
        self._check()
        task = asyncio.current_task()
        invariant(task is not None, "a scope is entered by tasks")
        if task is None:
            return
        before = task.cancelling()
        self._running.add(task)
        try:
            yield
        except asyncio.CancelledError:
            # As asyncio.timeout does: only a cancellation of ours becomes an error.
            if self._error is not None and task.uncancel() <= before:
                if changes:
                    raise Unavailable(UNKNOWN) from None
                self._check()
            raise
        finally:
            self._running.discard(task)

    def _check(self) -> None:
        if self._error is not None:
            raise type(self._error)(self._error.message, **self._error.context)

    def _admit(self) -> None:
        if self._error is not None:
            raise NotBegun(self._error.message)

    def guarded(self, handler: Any, barrier: Barrier, *, shows: bool) -> Any:
        """The same gRPC handler, in this scope.

        barrier: returns once this manager is known to lead still; it raises SwarmError otherwise.
        shows: the call changes nothing and its answer is what counts, so the barrier is awaited
        before the handler is called; of other calls, only before a refusal is told.
        """
        shapes = {
            (False, False): ("unary_unary", grpc.unary_unary_rpc_method_handler),
            (False, True): ("unary_stream", grpc.unary_stream_rpc_method_handler),
            (True, False): ("stream_unary", grpc.stream_unary_rpc_method_handler),
            (True, True): ("stream_stream", grpc.stream_stream_rpc_method_handler),
        }
        name, make = shapes[handler.request_streaming, handler.response_streaming]
        behaviour = getattr(handler, name)
        is_stream = inspect.isasyncgenfunction(behaviour)
        wrap = self._stream if is_stream else self._single
        return make(
            wrap(behaviour, barrier, shows),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _single(self, behaviour: Any, barrier: Barrier, shows: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            self._admit()
            with self.entered(changes=not shows):
                if shows:
                    await barrier()
                try:
                    return await behaviour(request, context)
                except SwarmError as refusal:
                    await _stand_by(refusal, None if shows else barrier)

        return call

    def _stream(self, behaviour: Any, barrier: Barrier, shows: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            self._admit()
            with self.entered():
                if shows:
                    await barrier()
            try:
                async with aclosing(self.steps(behaviour(request, context))) as answers:
                    async for answer in answers:
                        yield answer
            except SwarmError as refusal:
                with self.entered():
                    await _stand_by(refusal, None if shows else barrier)

        return call

    async def steps(self, answers: Any) -> AsyncGenerator[Any, None]:
        """The answers of an async generator, each made in the scope."""
        async with aclosing(answers):
            while True:
                with self.entered():
                    try:
                        answer = await anext(answers)
                    except StopAsyncIteration:
                        return
                yield answer


async def _stand_by(refusal: SwarmError, barrier: Barrier | None) -> NoReturn:
    """Raise the refusal, once the barrier has shown that it was not decided by an old state."""
    if barrier is not None and not isinstance(refusal, _CLAIMS_NOTHING):
        try:
            await barrier()
        except SwarmError as error:
            raise Unavailable(UNKNOWN) from error
    raise refusal
