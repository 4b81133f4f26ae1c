"""Connections that break while a request is being written: a real server, really killed."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from shoal.errors import Internal, Unavailable
from shoal.wire.errors import BROKEN_WRITE, CODE_KEY, from_rpc_error, is_lost

SERVER = """
import asyncio, sys, grpc

async def swallow(requests, context):
    async for _ in requests:
        print(flush=True)
    return b""

async def main():
    server = grpc.aio.server()
    methods = {"Swallow": grpc.stream_unary_rpc_method_handler(swallow)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))
    server.add_insecure_port("unix:" + sys.argv[1])
    await server.start()
    print(flush=True)
    await server.wait_for_termination()

asyncio.run(main())
"""
TRIES_MAX = 20


@contextlib.contextmanager
def a_server(socket: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SERVER, str(socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


async def killed_while_written_to(socket: Path) -> tuple[BaseException, grpc.aio.AioRpcError]:
    """How the write ended, and how the call did."""

    async def write(call) -> None:
        while True:
            await call.write(b"x" * 1000)

    with a_server(socket) as server:
        async with grpc.aio.insecure_channel(
            f"unix:{socket}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.stream_unary("/test/Swallow")(timeout=60)
            writing = asyncio.create_task(write(call))
            assert server.stdout is not None
            await asyncio.to_thread(server.stdout.readline)
            server.kill()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            (result,) = await asyncio.gather(writing, return_exceptions=True)
            return result, caught.value


async def test_a_server_that_is_killed_is_unavailable_and_not_an_internal_error(tmp_path):
    for turn in range(TRIES_MAX):  # the write may also find the call ended
        written, ended = await killed_while_written_to(tmp_path / f"{turn}.sock")
        assert isinstance(from_rpc_error(ended), Unavailable), ended
        assert is_lost(ended)
        if not isinstance(written, grpc.aio.AioRpcError):
            continue
        assert is_lost(written)
        error = from_rpc_error(written)
        assert isinstance(error, Unavailable)
        if written.code() is grpc.StatusCode.INTERNAL:
            assert written.details() == BROKEN_WRITE
            assert error.message.startswith("the call broke off while a request was being sent")
            break
    else:
        pytest.fail("no write ended as a write does whose connection breaks")


@pytest.mark.parametrize(
    ("details", "trailing"),
    [
        (BROKEN_WRITE, ((CODE_KEY, "internal"),)),
        (BROKEN_WRITE, (("another", "server's"),)),
        ("Internal error", ()),
        ("", ()),
    ],
)
def test_other_internal_errors_stay_what_they_are(details, trailing):
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.INTERNAL, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details
    )
    assert isinstance(from_rpc_error(error), Internal)
    assert not is_lost(error)


@pytest.mark.parametrize(
    ("status", "trailing", "lost"),
    [
        (grpc.StatusCode.UNAVAILABLE, (), True),
        (grpc.StatusCode.CANCELLED, (), True),
        (grpc.StatusCode.UNAVAILABLE, ((CODE_KEY, "not_begun"),), False),
        (grpc.StatusCode.DEADLINE_EXCEEDED, (), False),
        (grpc.StatusCode.PERMISSION_DENIED, (), False),
    ],
)
def test_what_a_server_says_is_not_a_lost_connection(status, trailing, lost):
    error = grpc.aio.AioRpcError(status, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), "why")
    assert is_lost(error) is lost
