"""Errors over a real server: every code, all four call shapes, bugs, cancelled calls."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from pathlib import Path

import grpc
import pytest

from shoal.errors import (
    ERROR_BY_CODE,
    Code,
    Internal,
    InvalidArgument,
    InvariantViolation,
    NotFound,
    NotLeader,
    SwarmError,
    Unavailable,
    Unimplemented,
)
from shoal.wire.errors import MESSAGE_BYTES_MAX, STATUS_BY_CODE, ErrorInterceptor, from_rpc_error

SHAPES = ["unary_unary", "unary_stream", "stream_unary", "stream_stream"]


class Service:
    """Four methods that do what `act`, or `act_on` with the call's context, says."""

    def __init__(self):
        self.act = lambda: None
        self.act_on = None
        self.entered = asyncio.Event()
        self.left = []

    async def _play(self, context):
        self.entered.set()
        try:
            result = self.act() if self.act_on is None else self.act_on(context)
            if asyncio.iscoroutine(result):
                await result
        finally:
            self.left.append("left")

    async def unary_unary(self, request, context):
        await self._play(context)
        return request

    async def unary_stream(self, request, context):
        yield request
        await self._play(context)
        yield request

    async def stream_unary(self, requests, context):
        async for _ in requests:
            pass
        await self._play(context)
        return b"end"

    async def stream_stream(self, requests, context):
        async for request in requests:
            yield request
        await self._play(context)

    def handlers(self):
        factory = {
            "unary_unary": grpc.unary_unary_rpc_method_handler,
            "unary_stream": grpc.unary_stream_rpc_method_handler,
            "stream_unary": grpc.stream_unary_rpc_method_handler,
            "stream_stream": grpc.stream_stream_rpc_method_handler,
        }
        return grpc.method_handlers_generic_handler(
            "test.Service", {name: factory[name](getattr(self, name)) for name in SHAPES}
        )


class Caller:
    """Calls the service in any shape."""

    def __init__(self, channel, service):
        self.channel = channel
        self.service = service

    async def call(self, shape, payload=b"x"):
        """All responses; our error if the call fails."""
        invoke = getattr(self.channel, shape)(f"/test.Service/{shape}")

        async def requests():
            yield payload

        argument = requests() if shape.startswith("stream") else payload
        call = invoke(argument)
        try:
            if shape.endswith("stream"):
                return [response async for response in call]
            return [await call]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()  # gRPC forgets to, if the task is cancelled before the first response


@pytest.fixture
async def caller():
    service = Service()
    with tempfile.TemporaryDirectory(prefix="shoal-wire-") as directory:
        address = f"unix:{Path(directory) / 's.sock'}"
        server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        server.add_generic_rpc_handlers((service.handlers(),))
        server.add_insecure_port(address)
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:
            yield Caller(channel, service)
        await server.stop(None)


def raising(error):
    def act():
        raise error

    return act


@pytest.mark.parametrize("shape", SHAPES)
async def test_without_an_error_nothing_is_changed(caller, shape):
    expected = {"unary_stream": [b"x", b"x"], "stream_unary": [b"end"]}.get(shape, [b"x"])
    assert await caller.call(shape) == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("code", Code)
async def test_every_error_arrives_as_itself(caller, shape, code):
    caller.service.act = raising(ERROR_BY_CODE[code]("web: größer als erlaubt"))
    with pytest.raises(SwarmError) as caught:
        await caller.call(shape)
    assert type(caught.value) is ERROR_BY_CODE[code]
    assert caught.value.message == "web: größer als erlaubt"


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_bug_ends_its_call_and_not_the_server(caller, shape):
    caller.service.act = raising(KeyError("surprise"))
    with pytest.raises(Internal, match=f"/test.Service/{shape} failed: KeyError: 'surprise'"):
        await caller.call(shape)
    caller.service.act = lambda: None
    assert await caller.call(shape)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_that_was_ended_is_not_ended_again(caller, shape, caplog):
    async def end_twice(context):
        with contextlib.suppress(grpc.aio.AbortError):
            await context.abort(grpc.StatusCode.NOT_FOUND, "gone", (("shoal-code", "not_found"),))
        raise OSError("nobody was there any more")

    caller.service.act_on = end_twice
    with pytest.raises(NotFound, match="gone"):
        await caller.call(shape)
    await asyncio.sleep(0.1)
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_broken_invariant_in_a_call_is_no_success(caller, shape):
    caller.service.act = raising(InvariantViolation("state goes down"))
    with pytest.raises(Internal, match="state goes down"):
        await caller.call(shape)


@pytest.mark.parametrize("shape", SHAPES)
async def test_the_error_of_a_forwarded_call_is_passed_on(caller, shape):
    async def forward():
        caller.service.act = raising(NotFound("no such service"))
        await caller.channel.unary_unary("/test.Service/unary_unary")(b"x")

    caller.service.act = forward
    with pytest.raises(NotFound, match="no such service"):
        await caller.call(shape)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_call_that_is_cancelled_leaves_its_method(caller, shape):
    caller.service.act = asyncio.Event().wait
    call = asyncio.create_task(caller.call(shape))
    await caller.service.entered.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(10):
        while not caller.service.left:
            await asyncio.sleep(0.001)
    caller.service.act = lambda: None
    assert await caller.call(shape)


@pytest.mark.parametrize("message", ["x" * 50_000, "ü" * 50_000, "file \udcff", "a\nb\0c"])
async def test_any_message_can_be_sent(caller, message):
    """gRPC drops a call whose trailers are too long: the error would become a mystery."""
    caller.service.act = raising(InvalidArgument(message))
    with pytest.raises(InvalidArgument) as caught:
        await caller.call("unary_unary")
    assert caught.value.message[:5] == message.encode("utf-8", "replace").decode()[:5]
    assert len(caught.value.message.encode()) <= MESSAGE_BYTES_MAX + 4


async def test_without_a_server_it_is_unavailable():
    async with grpc.aio.insecure_channel("unix:/nowhere/at.all") as channel:
        with pytest.raises(Unavailable):
            await Caller(channel, None).call("unary_unary")


async def test_an_unknown_method_is_unimplemented(caller):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.channel.unary_unary("/test.Service/other")(b"")
    assert isinstance(from_rpc_error(caught.value), Unimplemented)


def a_foreign_error(status):
    return grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(), "why")


@pytest.mark.parametrize("status", grpc.StatusCode)
def test_every_status_of_a_foreign_server_becomes_an_error(status):
    error = from_rpc_error(a_foreign_error(status))
    assert error.message == "why"
    retryable = {
        grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
    }  # fmt: skip
    assert error.retryable == (status in retryable)


def test_every_code_has_a_status():
    assert set(STATUS_BY_CODE) == set(Code) == set(ERROR_BY_CODE)
    assert NotLeader("x").retryable
