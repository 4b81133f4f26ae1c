"""Calls that come while the leader is dying: held, made again, or told the truth."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest

from manager.leadership import router as router_module
from manager.leadership.interfaces import Leadership, NoLeader
from manager.leadership.repeating import UNKNOWN, Failure, Requests, may_repeat, told
from shoal.errors import Internal, NotBegun, NotLeader, SwarmError, Unavailable
from shoal.wire.errors import ErrorInterceptor
from tests.support.etcd import Wire
from tests.support.managing import refusal, until
from tests.unit.manager.leadership.test_router import SERVICE, Node, chunks

GET, SET, SUM, MANY = (f"/{SERVICE}/{name}" for name in ("One", "Wait", "Sum", "Many"))
"""The first only shows something, like the last; the others change what there is."""
TIMEOUT_S = 30.0


class Leader:
    """A manager that leads, reached over a wire that can be cut. It counts what it begins."""

    def __init__(self) -> None:
        self.begun: list[bytes] = []
        self.gate = asyncio.Event()
        self.error: SwarmError | None = None
        self.address = ""
        self.server: grpc.aio.Server | None = None

    async def one(self, request: bytes, context: object) -> bytes:
        if self.error is not None:
            raise self.error
        self.begun.append(request)
        await self.gate.wait()
        return b"did " + request

    async def total(self, requests: AsyncIterator[bytes], context: object) -> bytes:
        async for request in requests:
            self.begun.append(request)
            if self.error is not None:
                raise self.error
        return b"".join(self.begun)

    async def many(self, request: bytes, context: object) -> AsyncIterator[bytes]:
        self.begun.append(request)
        yield request
        await self.gate.wait()
        yield request

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Wire]:
        server = self.server = grpc.aio.server(interceptors=[ErrorInterceptor()])
        methods = {
            "One": grpc.unary_unary_rpc_method_handler(self.one),
            "Wait": grpc.unary_unary_rpc_method_handler(self.one),
            "Sum": grpc.stream_unary_rpc_method_handler(self.total),
            "Many": grpc.unary_stream_rpc_method_handler(self.many),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with Wire(port) as wire:
                self.address = f"127.0.0.1:{wire.port}"
                yield wire
        finally:
            await server.stop(None)


class Rig:
    """A follower, the leader it knows, and the one that comes after it."""

    def __init__(self, node: Node, channel: grpc.aio.Channel, old: Leader, wire: Wire, new: Leader):
        self.node, self.channel, self.old, self.wire, self.new = node, channel, old, wire, new
        self.terms = itertools.count(2)

    def call(self, method: str, request: bytes = b"x") -> asyncio.Future[bytes]:
        return asyncio.ensure_future(self.channel.unary_unary(method)(request, timeout=TIMEOUT_S))

    def follow(self, address: str) -> None:
        """What this manager knows of the leadership, as `LeaderWork` tells the router."""
        now = Leadership(term=next(self.terms), address=address)
        self.node.consensus.leadership.set(now)
        self.node.router.leader_changed(now)


@pytest.fixture
async def rig(tmp_path) -> AsyncIterator[Rig]:
    node = Node(tmp_path, "n1", only_shows=lambda method: method in (GET, MANY))
    old, new = Leader(), Leader()
    async with old.serving() as wire, new.serving(), node.serving() as channel:
        rig = Rig(node, channel, old, wire, new)
        new.gate.set()
        rig.follow(old.address)
        yield rig
        old.gate.set()


async def test_a_change_that_never_reached_the_dead_leader_is_made_once_by_the_next(rig: Rig):
    rig.follow("127.0.0.1:1")  # nobody listens there
    call = rig.call(SET)
    await asyncio.sleep(0.1)
    rig.follow("")
    await asyncio.sleep(0.1)
    assert not call.done()
    rig.follow(rig.new.address)
    assert await call == b"did x"
    assert (rig.old.begun, rig.new.begun) == ([], [b"x"])


@pytest.mark.parametrize("cut", [True, False], ids=["broken", "silent"])
async def test_a_change_that_may_have_been_begun_is_not_made_again(rig: Rig, cut: bool):
    call = rig.call(SET)
    await until(lambda: rig.old.begun)
    if cut:
        rig.wire.cut()
    else:
        rig.follow(rig.new.address)
    assert await refusal(call) == f"UNAVAILABLE {UNKNOWN}"
    rig.follow(rig.new.address)
    await asyncio.sleep(0.1)
    assert (rig.old.begun, rig.new.begun) == ([b"x"], [])


async def test_a_leader_that_stops_in_order_leaves_no_doubt_unsaid(rig: Rig):
    changes, read = rig.call(SET), rig.call(GET)
    await until(lambda: len(rig.old.begun) == 2)
    rig.follow("")
    assert rig.old.server is not None
    await rig.old.server.stop(None)
    assert await refusal(changes) == f"UNAVAILABLE {UNKNOWN}"
    rig.follow(rig.new.address)
    assert await read == b"did x"


@pytest.mark.parametrize("cut", [True, False], ids=["broken", "silent"])
async def test_a_read_is_asked_again(rig: Rig, cut: bool):
    call = rig.call(GET)
    await until(lambda: rig.old.begun)
    rig.follow("")
    if cut:
        rig.wire.cut()
    rig.follow(rig.new.address)
    assert await call == b"did x"
    assert rig.new.begun == [b"x"]


async def test_a_stream_of_which_something_was_seen_is_not_begun_anew(rig: Rig):
    stream = rig.channel.unary_stream(MANY)(b"m", timeout=TIMEOUT_S)
    assert await stream.read() == b"m"
    rig.wire.cut()
    assert (await refusal(stream.read())).startswith("UNAVAILABLE the leader went away during")
    assert rig.new.begun == []


async def test_a_stream_of_which_nothing_was_seen_is(rig: Rig):
    rig.follow("")
    stream = rig.channel.unary_stream(MANY)(b"m", timeout=TIMEOUT_S)
    await until(lambda: rig.node.router._held)
    rig.follow(rig.new.address)
    assert [one async for one in stream] == [b"m", b"m"]


async def test_what_the_other_manager_did_not_begin_is_made_again(rig: Rig):
    rig.old.error = NotBegun("this manager does not lead the cluster: try again")
    calls = [rig.call(SET), rig.call(GET)]
    await asyncio.sleep(0.3)
    assert not any(call.done() for call in calls)
    rig.follow(rig.new.address)
    assert await asyncio.gather(*calls) == [b"did x"] * 2
    assert rig.old.begun == []


async def test_an_error_of_the_leader_itself_passes(rig: Rig):
    rig.old.error = Internal("it broke")
    assert await refusal(rig.call(SET)) == "INTERNAL it broke"
    assert await refusal(rig.call(GET)) == "INTERNAL it broke"


async def test_requests_that_stream_are_held_and_come_whole(rig: Rig):
    rig.follow("")
    call = rig.channel.stream_unary(SUM)(chunks(b"a", b"b", b"c"), timeout=TIMEOUT_S)
    await until(lambda: rig.node.router._held)
    rig.follow(rig.new.address)
    assert await call == b"abc"


async def test_requests_that_stream_cannot_be_sent_again(rig: Rig):
    rig.old.error = NotBegun("this manager does not lead the cluster: try again")
    call = rig.channel.stream_unary(SUM)(timeout=TIMEOUT_S)
    await call.write(b"a")
    await until(lambda: rig.old.begun)
    rig.old.error = None
    await until(lambda: len(rig.old.begun) == 2)  # one message can be repeated
    await call.write(b"b")
    await until(lambda: len(rig.old.begun) == 3)
    rig.wire.cut()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert rig.new.begun == []


async def test_only_so_many_calls_are_held(rig: Rig, monkeypatch):
    monkeypatch.setattr(router_module, "HELD_MAX", 2)
    rig.follow("")
    held = [rig.call(SET), rig.call(GET)]
    await until(lambda: rig.node.router._held == 2)
    assert "2 calls wait for a leader already" in await refusal(rig.call(GET))
    rig.follow(rig.new.address)
    assert await asyncio.gather(*held) == [b"did x"] * 2
    await until(lambda: not rig.node.router._held)


async def test_who_waits_in_vain_is_told_why_before_its_deadline(rig: Rig):
    rig.follow("")
    call = rig.channel.unary_unary(GET)(b"x", timeout=1)
    assert (await refusal(call)).startswith("UNAVAILABLE The cluster does not have a leader. It's")
    rig.follow("127.0.0.1:1")
    call = rig.channel.unary_unary(SET)(b"x", timeout=2)
    assert await refusal(call) == (
        "UNAVAILABLE the leader at 127.0.0.1:1 cannot be reached from this manager: try again, or"
        " ask another manager"
    )


async def test_a_client_that_goes_away_is_not_waited_for(rig: Rig):
    rig.follow("")
    call = rig.call(SET)
    await until(lambda: rig.node.router._held)
    call.cancel()
    await until(lambda: not rig.node.router._held)


async def test_when_more_is_amiss_than_an_election_calls_are_not_held_long(tmp_path, monkeypatch):
    monkeypatch.setattr(router_module, "LEADER_WAIT_S", 0.1)
    monkeypatch.setattr(router_module, "LOOK_PERIOD_S", 0.05)
    why = [NoLeader("an election", is_passing=True)]
    node = Node(tmp_path, "n1", why_no_leader=lambda: why[0])
    async with node.serving() as channel:
        call = asyncio.ensure_future(channel.unary_unary(GET)(b"!", timeout=TIMEOUT_S))
        await asyncio.sleep(0.4)
        assert not call.done()
        why[0] = NoLeader("the quorum is lost", is_passing=False)
        assert await refusal(call) == "UNAVAILABLE the quorum is lost"


def every_failure() -> Iterator[Failure]:
    errors = (NotBegun("b"), NotLeader("l"), Unavailable("u"), Internal("i"))
    for error, *flags in itertools.product(errors, *[[False, True]] * 3):
        yield Failure(error, *flags)


@pytest.mark.parametrize("only_shows", [False, True])
@pytest.mark.parametrize("failure", [*every_failure()], ids=str)
def test_nothing_is_done_twice_and_no_doubt_is_hidden(failure: Failure, only_shows: bool):
    repeated = may_repeat(failure, only_shows=only_shows)
    begun = failure.sent and not isinstance(failure.error, NotBegun)
    if repeated:
        assert not failure.answered, "the client would see the beginning twice"
        assert only_shows or not begun
    elif begun and failure.lost and not failure.answered and not only_shows:
        assert told(failure, only_shows=only_shows).message == UNKNOWN
    else:
        assert told(failure, only_shows=only_shows) is failure.error
    if failure.lost and not failure.answered and not failure.sent:
        assert repeated


async def test_requests_begin_again_also_when_their_reader_was_interrupted():
    gate = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"a"
        await gate.wait()
        yield b"b"

    async def read(requests: Requests) -> list[bytes]:
        return [one async for one in requests.each()]

    requests = Requests(source())
    first = asyncio.create_task(read(requests))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert requests.are_whole
    second = asyncio.create_task(read(requests))
    await asyncio.sleep(0.01)
    gate.set()
    assert await second == [b"a", b"b"]
    assert not requests.are_whole
    await requests.close()


async def test_many_calls_to_a_dead_leader_share_few_connections(rig: Rig):
    opened: list[str] = []
    rig.node.router._dial._open = lambda address: opened.append(address) or rig.node._open(address)
    rig.follow("127.0.0.1:1")
    calls = [rig.call(SET, str(n).encode()) for n in range(100)]
    await asyncio.sleep(1.5)
    assert len(opened) <= 3
    rig.follow(rig.new.address)
    assert sorted(await asyncio.gather(*calls)) == sorted(f"did {n}".encode() for n in range(100))
    assert len(rig.new.begun) == 100, "each once"
