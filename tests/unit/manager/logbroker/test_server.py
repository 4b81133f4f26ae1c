"""Logs and LogBroker over their real wires."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from manager.logbroker.broker import LogBroker
from manager.logbroker.server import LogBrokerServer, LogsServer
from shoal.api.v1 import logs_pb2 as pb
from shoal.api.v1.logs_pb2_grpc import (
    LogBrokerStub,
    LogsStub,
    add_LogBrokerServicer_to_server,
    add_LogsServicer_to_server,
)
from shoal.security.grpc_tls import local_channel
from tests.support.managing import Served, a_store, an_identity, refusal, served, until
from tests.support.planning import a_node, a_service, a_task

TIMEOUT_S = 20.0
N1 = an_identity("n1")


class Rig:
    def __init__(self) -> None:
        rows = [a_service("web"), a_node("n1"), a_task("t1"), a_task("t2", node_id="n2")]
        self.store, _ = a_store(rows)
        self.broker = LogBroker(self.store)
        self.at: Served
        self.logs: LogsStub
        self.node: LogBrokerStub

    def subscribe(self, **options):
        selector = pb.LogSelector(tasks=["t1"])
        request = pb.SubscribeLogsRequest(selector=selector, options=pb.LogOptions(**options))
        return self.logs.SubscribeLogs(request)

    async def listen(self):
        call = self.node.ListenSubscriptions(pb.ListenSubscriptionsRequest())
        await until(lambda: "n1" in self.broker._listeners)
        return call


@pytest.fixture
async def rig(tmp_path) -> AsyncIterator[Rig]:
    rig = Rig()

    def add(server: grpc.aio.Server) -> None:
        add_LogsServicer_to_server(LogsServer(rig.broker), server)
        add_LogBrokerServicer_to_server(LogBrokerServer(rig.broker), server)

    socket_path = tmp_path / "m.sock"
    async with (
        served(add, socket_path) as rig.at,
        local_channel(socket_path) as local,
        rig.at.channel(N1) as secure,
    ):
        rig.logs, rig.node = LogsStub(local), LogBrokerStub(secure)
        yield rig


async def read(call):
    async with asyncio.timeout(TIMEOUT_S):
        return await call.read()


def lines(subscription_id: str, *texts: bytes, task_id: str = "t1", **fields):
    messages = [
        pb.LogMessage(context=pb.LogContext(task_id=task_id), timestamp_ns=n, stream=1, data=text)
        for n, text in enumerate(texts, start=1)
    ]
    return pb.PublishLogsMessage(subscription_id=subscription_id, messages=messages, **fields)


async def test_lines_go_from_the_node_to_the_reader(rig):
    listening = await rig.listen()
    reading = rig.subscribe(tail=3, streams=[1], since_ns=5, until_ns=9, details=True)
    ask = await read(listening)
    assert list(ask.task_ids) == ["t1"]
    assert (ask.options.tail, list(ask.options.streams)) == (3, [1])
    assert (ask.options.since_ns, ask.options.until_ns, ask.options.follow) == (5, 9, False)
    assert ask.options.details
    publishing = rig.node.PublishLogs()
    await publishing.write(lines(ask.id))
    said = lines(ask.id, b"a", b"\xff\x00")
    said.messages[0].details = "A=1"
    await publishing.write(said)
    await publishing.write(lines("", b"not ours", task_id="t2"))
    await publishing.write(lines("", close=True))
    message = await read(reading)
    assert [item.data for item in message.messages] == [b"a", b"\xff\x00"]
    assert [item.details for item in message.messages] == ["A=1", ""]
    assert message.messages[0].context == pb.LogContext(
        service_id="web", node_id="n1", task_id="t1"
    )
    assert await read(reading) is grpc.aio.EOF
    assert await publishing == pb.PublishLogsResponse()
    assert (await read(listening)).close
    listening.cancel()


async def test_unset_tail_means_all_lines_and_a_negative_one_is_refused(rig):
    listening = await rig.listen()
    reading = rig.subscribe()
    assert not (await read(listening)).options.HasField("tail")
    reading.cancel()
    listening.cancel()
    assert "tail: must not be negative" in await refusal(rig.subscribe(tail=-1).read())


@pytest.mark.parametrize("clean", [True, False])
async def test_a_publisher_that_fails_or_dies_is_named(rig, clean):
    listening = await rig.listen()
    reading = rig.subscribe()
    ask = await read(listening)
    publishing = rig.node.PublishLogs()
    await publishing.write(lines(ask.id, b"a"))
    assert len((await read(reading)).messages) == 1
    if clean:
        await publishing.write(lines(ask.id, close=True, error="no such file"))
    else:
        publishing.cancel()
    reason = "no such file" if clean else "the node stopped sending"
    assert (await read(reading)).incomplete == f"node n1: {reason}"
    assert await read(reading) is grpc.aio.EOF
    listening.cancel()


async def test_a_reader_that_leaves_ends_the_publishing(rig):
    listening = await rig.listen()
    reading = rig.subscribe(follow=True)
    ask = await read(listening)
    publishing = rig.node.PublishLogs()
    await publishing.write(lines(ask.id, b"a"))
    await read(reading)
    reading.cancel()
    assert (await read(listening)).close
    await until(lambda: not rig.broker._subscriptions)
    await publishing.write(lines(ask.id, b"b"))
    assert (await refusal(publishing)).startswith("NOT_FOUND nobody reads these logs")
    listening.cancel()


async def test_a_reader_that_stops_reading_stops_the_publisher_and_not_the_manager(rig):
    listening = await rig.listen()
    reading = rig.subscribe(follow=True)
    ask = await read(listening)
    publishing = rig.node.PublishLogs()
    sent = 0

    async def flood() -> None:
        nonlocal sent
        while True:
            await publishing.write(lines(ask.id, *[b"x" * 10_000] * 100))
            sent += 1

    flooding = asyncio.create_task(flood())
    _, publisher = rig.broker.publisher(ask.id, "n1")
    await until(lambda: publisher.is_full)
    before = -1
    while before != sent:  # gRPC's buffers fill, then nothing moves
        before = sent
        await asyncio.sleep(0.2)
    assert publisher.queued_bytes < 3 << 20
    assert sent < 100
    got = 0
    while got < 20_000_000:
        message = await read(reading)
        assert len(message.SerializeToString()) < 4 << 20
        got += sum(len(item.data) for item in message.messages)
    flooding.cancel()
    await asyncio.gather(flooding, return_exceptions=True)
    for call in (publishing, reading, listening):
        call.cancel()


async def test_a_removed_node_and_a_second_listener_end_the_stream(rig):
    first = await rig.listen()
    second = rig.node.ListenSubscriptions(pb.ListenSubscriptionsRequest())
    assert await read(first) is grpc.aio.EOF
    rig.broker.forget("n1")
    assert await read(second) is grpc.aio.EOF


async def test_nobody_publishes_where_it_was_not_asked(rig):
    publishing = rig.node.PublishLogs()
    await publishing.write(lines("nonsense", b"a"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await publishing
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    listening = await rig.listen()
    reading = rig.subscribe(follow=True)
    ask = await read(listening)
    async with rig.at.channel(an_identity("n2")) as channel:
        evil = LogBrokerStub(channel).PublishLogs()
        await evil.write(lines(ask.id, b"forged"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await evil
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        text = await refusal(LogsStub(channel).SubscribeLogs(pb.SubscribeLogsRequest()).read())
        assert text.startswith("PERMISSION_DENIED")
    reading.cancel()
    listening.cancel()
