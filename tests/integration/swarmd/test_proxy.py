"""Calls that pass through swarmd to a real gRPC process behind it."""

from __future__ import annotations

import asyncio

import grpc
import pytest

from tests.integration.swarmd.conftest import Node, until

pytestmark = pytest.mark.root
IMAGES = "/shoal.api.v1.Images"
TIMEOUT_S = 60.0


async def chunks(count: int, size: int = 3):
    for _ in range(count):
        yield b"x" * size


async def drain(call) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_all_four_shapes_pass(node: Node):
    async with node.running():
        channel = node.channel
        assert await channel.unary_unary(f"{IMAGES}/Echo")(b"one", timeout=TIMEOUT_S) == b"one"
        stream = channel.unary_stream(f"{IMAGES}/Echo")(b"two", timeout=TIMEOUT_S)
        assert [message async for message in stream] == [b"two"]
        total = await channel.stream_unary(f"{IMAGES}/Sum")(chunks(100), timeout=TIMEOUT_S)
        assert total == b"300"
        both = channel.stream_stream(f"{IMAGES}/Echo")(chunks(50), timeout=TIMEOUT_S)
        assert [message async for message in both] == [b"xxx"] * 50


async def test_a_conversation_is_not_held_back(node: Node):
    """Each answer arrives before the next question is asked."""
    async with node.running():
        call = node.channel.stream_stream(f"{IMAGES}/Echo")(timeout=TIMEOUT_S)
        for number in range(5):
            await call.write(str(number).encode())
            assert await call.read() == str(number).encode()
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_metadata_passes_both_ways(node: Node):
    async with node.running():
        call = node.channel.unary_unary(f"{IMAGES}/Echo")(
            b"m", timeout=TIMEOUT_S, metadata=(("x-given", "v"), ("x-bytes-bin", b"\x01"))
        )
        await call
        initial = dict(await call.initial_metadata())
        assert (initial["x-given"], initial["x-bytes-bin"]) == ("v", b"\x01")
        trailing = dict(await call.trailing_metadata())
        assert (trailing["x-count"], trailing["x-raw-bin"]) == ("1", b"\x00\xff")


async def test_an_error_keeps_status_text_and_code(node: Node):
    async with node.running():
        stream = node.channel.unary_stream(f"{IMAGES}/Fail")(b"first", timeout=TIMEOUT_S)
        assert await stream.read() == b"first"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert caught.value.code() is grpc.StatusCode.ABORTED
    assert caught.value.details() == "the object changed"
    trailing = caught.value.trailing_metadata()
    assert (trailing["shoal-code"], trailing["x-more"]) == ("sequence_conflict", "yes")


async def test_a_status_without_our_code_keeps_its_status(node: Node):
    async with node.running():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.channel.unary_unary(f"{IMAGES}/Bare")(b"", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.DATA_LOSS
    assert caught.value.trailing_metadata()["shoal-code"] == "internal"


async def test_cancelling_reaches_the_process(node: Node):
    async with node.running():
        call = node.channel.unary_stream(f"{IMAGES}/Hang")(b"", timeout=TIMEOUT_S)
        assert await call.read() == b"begun"
        call.cancel()
        await node.until_called("worker", "hang ends")


async def test_a_deadline_is_kept(node: Node):
    async with node.running():
        left = await node.channel.unary_unary(f"{IMAGES}/ListImages")(b"", timeout=15)
        assert 0 < float(left) <= 15
        call = node.channel.unary_stream(f"{IMAGES}/Hang")(b"", timeout=5)
        assert await call.read() == b"begun"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await node.until_called("worker", "hang ends")


async def test_an_answer_that_comes_at_once_is_not_lost(node: Node):
    """The process behind answers before it has heard that there are no further requests."""
    async with node.running():
        ask = node.channel.unary_unary(f"{IMAGES}/ListImages")
        for _ in range(30):
            answers = await asyncio.gather(*(ask(b"", timeout=TIMEOUT_S) for _ in range(20)))
            assert all(float(answer) > 0 for answer in answers)


async def test_a_reader_that_stops_stops_the_writer(node: Node):
    """The process behind can be ahead of a reader by what gRPC's windows hold, not for ever."""
    async with node.running():
        call = node.channel.unary_stream(f"{IMAGES}/Flood")(b"", timeout=TIMEOUT_S)
        assert len(await call.read()) == 64 * 1024
        sent = node.paths.state / "flood"
        seen: list[str] = []

        def settled() -> bool:
            seen.append(sent.read_text() if sent.exists() else "")
            return len(seen) > 25 and len(set(seen[-25:])) == 1

        await until(settled)
        assert int(seen[-1]) * 64 * 1024 < 64 << 20
        call.cancel()
        await node.until_called("worker", "flood ends")


async def test_a_process_that_dies_ends_the_call_with_its_name(node: Node):
    async with node.running():
        call = node.channel.unary_stream(f"{IMAGES}/Die")(b"", timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await drain(call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "worker process went away" in caught.value.details()
        assert caught.value.trailing_metadata()["shoal-code"] == "unavailable"
        # It is started again, and the next call waits for it.
        assert await node.channel.unary_unary(f"{IMAGES}/Echo")(b"e", timeout=TIMEOUT_S) == b"e"


async def test_a_process_that_never_comes_is_unavailable_with_the_reason(node: Node):
    async with node.running():
        await node.until_called("worker", "serving")
        node.tell("worker.exit", "7")
        call = node.channel.unary_stream(f"{IMAGES}/Die")(b"", timeout=TIMEOUT_S)
        with pytest.raises(grpc.aio.AioRpcError):
            await drain(call)
        told = ""
        for _ in range(20):  # the first may still meet the process as it goes
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await node.channel.unary_unary(f"{IMAGES}/Echo")(b"e", timeout=TIMEOUT_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            told = caught.value.details()
            if "exit code 7" in told:
                break
    assert "exit code 7" in told


@pytest.mark.parametrize(
    "method",
    [
        "/shoal.api.v1.Ca/GetRootCaCertificate",
        "/shoal.api.v1.Dispatcher/Session",
        "/shoal.api.v1.LogBroker/ListenSubscriptions",
        "/shoal.api.v1.WorkerControl/RemoveTasks",
        "/shoal.api.v1.Telemetry/GetMetrics",
    ],
)
async def test_what_is_not_for_users_cannot_be_reached(node: Node, method: str):
    async with node.running():
        await node.until_called("worker", "serving")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.channel.unary_unary(method)(b"", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "remove" not in node.calls("worker")


@pytest.mark.parametrize("service", ["Control", "Logs", "Watch"])
async def test_outside_a_cluster_there_is_no_control(node: Node, service: str):
    async with node.running():
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await node.channel.unary_unary(f"/shoal.api.v1.{service}/Echo")(b"", timeout=TIMEOUT_S)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "swarmctl init" in caught.value.details()
    assert caught.value.trailing_metadata()["shoal-code"] == "failed_precondition"


async def test_many_calls_at_once(node: Node):
    async with node.running():
        echo = node.channel.unary_unary(f"{IMAGES}/Echo")
        calls = (echo(str(n).encode(), timeout=TIMEOUT_S) for n in range(100))
        assert await asyncio.gather(*calls) == [str(n).encode() for n in range(100)]
