"""Calls that find the leader: scopes, the router, work of one term."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from manager.leadership.calls import Dial
from manager.leadership.interfaces import Leadership
from manager.leadership.router import LeaderRouter
from manager.leadership.scope import Scope
from manager.leadership.work import LeaderWork
from shoal.aio.observed import Observed
from shoal.clock import SystemClock
from shoal.errors import InvariantViolation, NotFound, NotLeader, SequenceConflict, Unavailable
from shoal.model.objects import StoreEntry
from shoal.model.plan import create
from shoal.security.authorize import Permissions, allow
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.peer import PeerVerifier, current_caller
from shoal.security.roles import Role
from shoal.wire.errors import ErrorInterceptor
from tests.support.managing import CLUSTER, ROOT, a_store, refusal, until
from tests.support.planning import a_task

SERVICE = "test.Echo"
METHODS = ("One", "Many", "Sum", "Both", "Wait")


class FakeConsensus:
    """Leadership by hand; the proposals of which terms came."""

    def __init__(self) -> None:
        self.leadership = Observed(Leadership())
        self.terms = []
        self.barriers = 0
        self.store, self.proposer = a_store()

    async def propose(self, entry: StoreEntry, *, term=None):
        now = self.leadership.value
        if not now.here or now.term != term:
            raise NotLeader("another term")
        self.terms.append(term)
        return await self.proposer.propose(entry)

    async def read_barrier(self) -> None:
        self.barriers += 1


def handlers(name: str):
    """One of each shape; they say who serves and who called."""

    async def one(request, context):
        caller = current_caller()
        return f"{name} {caller.identity.role.value} {caller.forwarded}".encode() + request

    async def many(request, context):
        for _ in range(3):
            yield request

    async def total(requests, context):
        return str(sum([len(request) async for request in requests])).encode()

    async def both(requests, context):
        async for request in requests:
            yield request

    async def wait(request, context):
        yield b"begun"
        await asyncio.Event().wait()

    return {
        f"/{SERVICE}/One": grpc.unary_unary_rpc_method_handler(one),
        f"/{SERVICE}/Many": grpc.unary_stream_rpc_method_handler(many),
        f"/{SERVICE}/Sum": grpc.stream_unary_rpc_method_handler(total),
        f"/{SERVICE}/Both": grpc.stream_stream_rpc_method_handler(both),
        f"/{SERVICE}/Wait": grpc.unary_stream_rpc_method_handler(wait),
    }


class Node:
    """A server with a router, reached over a socket; others reach it as a manager would."""

    def __init__(self, tmp_path, name: str, **options) -> None:
        self.consensus = FakeConsensus()
        self.socket = tmp_path / f"{name}.sock"
        self.router = LeaderRouter([SERVICE], self.consensus, Dial(self._open), **options)
        self.scope = Scope()
        self.name = name

    def _open(self, address: str) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(address)

    def lead(self) -> None:
        self.scope = Scope()
        served = {
            method: self.scope.guarded(handler, self.consensus.read_barrier, shows=True)
            for method, handler in handlers(self.name).items()
        }
        self.router.serve(served)

    @asynccontextmanager
    async def serving(self):
        verifier = PeerVerifier(ROOT.certificate_pem, cluster_id=CLUSTER, clock=SystemClock())
        table = Permissions(allow(SERVICE, METHODS, *Role))
        server = grpc.aio.server(
            interceptors=[AuthorizationInterceptor(verifier, table), ErrorInterceptor()]
        )
        server.add_generic_rpc_handlers((self.router,))
        server.add_insecure_port(f"unix:{self.socket}")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"unix:{self.socket}") as channel:
                yield channel
        finally:
            await self.router.close()
            await server.stop(None)


async def chunks(*parts):
    for part in parts:
        yield part


async def every_shape(channel) -> None:
    many = channel.unary_stream(f"/{SERVICE}/Many")(b"m", timeout=10)
    assert [one async for one in many] == [b"m"] * 3
    assert await channel.stream_unary(f"/{SERVICE}/Sum")(chunks(b"ab", b"c"), timeout=10) == b"3"
    both = channel.stream_stream(f"/{SERVICE}/Both")(chunks(b"x", b"y"), timeout=10)
    assert [one async for one in both] == [b"x", b"y"]


async def test_the_leader_serves_every_shape_and_waits_for_its_barrier(tmp_path):
    node = Node(tmp_path, "n1")
    async with node.serving() as channel:
        node.lead()
        answer = await channel.unary_unary(f"/{SERVICE}/One")(b"!", timeout=10)
        assert answer == b"n1 local False!"
        await every_shape(channel)
        assert node.consensus.barriers == 4


async def test_a_call_that_came_while_nobody_led_is_served_by_whoever_leads_next(tmp_path):
    node = Node(tmp_path, "n1")
    async with node.serving() as channel:
        calls = [
            asyncio.ensure_future(channel.unary_unary(f"/{SERVICE}/One")(b"!", timeout=10)),
            asyncio.ensure_future(every_shape(channel)),
        ]
        await asyncio.sleep(0.05)
        node.lead()
        assert (await asyncio.gather(*calls))[0] == b"n1 local False!"


async def test_a_leader_that_is_gone_before_a_waiting_call_reaches_it_is_not_called(tmp_path):
    node = Node(tmp_path, "n1")
    async with node.serving() as channel:
        call = asyncio.ensure_future(channel.unary_unary(f"/{SERVICE}/One")(b"!", timeout=20))
        await until(lambda: node.router._held)
        node.lead()
        node.router.pass_on()
        await asyncio.sleep(0.05)
        assert not call.done()
        node.name = "again"
        node.lead()
        assert await call == b"again local False!"


async def test_forged_vouching_over_a_socket_is_refused(tmp_path):
    node = Node(tmp_path, "n1")
    async with node.serving() as channel:
        node.lead()
        call = channel.unary_unary(f"/{SERVICE}/One")(
            b"!", metadata=(("shoal-forwarded-peer", "manager n1 -"),), timeout=10
        )
        assert "only a manager may call for others" in await refusal(call)


async def test_calls_end_with_the_leadership(tmp_path):
    node = Node(tmp_path, "n1")
    async with node.serving() as channel:
        node.lead()
        call = channel.unary_stream(f"/{SERVICE}/Wait")(b"", timeout=10)
        assert await call.read() == b"begun"
        node.router.pass_on()
        node.scope.end(NotLeader("over"))
        assert await refusal(call.read()) == "UNAVAILABLE over"


async def test_a_scope_turns_only_its_own_cancellation_into_its_error():
    scope = Scope()

    async def step():
        with scope.entered():
            await asyncio.Event().wait()

    mine, others = asyncio.create_task(step()), asyncio.create_task(step())
    await asyncio.sleep(0)
    others.cancel()
    with pytest.raises(asyncio.CancelledError):
        await others
    scope.end(NotLeader("over"))
    with pytest.raises(NotLeader, match="over"):
        await mine
    with pytest.raises(NotLeader), scope.entered():
        pass


@pytest.mark.parametrize("name", ["One", "Many"])
async def test_a_refusal_is_told_only_by_who_leads_still(name):
    barriers = []

    async def replaced() -> None:
        barriers.append("replaced")
        raise NotLeader("n2 leads")

    async def leading() -> None:
        barriers.append("leading")

    async def one(request, context):
        raise request

    async def many(request, context):
        yield b"first"
        raise request

    handler = {
        "One": grpc.unary_unary_rpc_method_handler(one),
        "Many": grpc.unary_stream_rpc_method_handler(many),
    }[name]

    async def called(error, barrier) -> None:
        guarded = Scope().guarded(handler, barrier, shows=False)
        if name == "One":
            await guarded.unary_unary(error, None)
        else:
            assert [answer async for answer in guarded.unary_stream(error, None)] == [b"first"]

    for refused in (SequenceConflict("changed since"), NotFound("no such service")):
        with pytest.raises(type(refused)):
            await called(refused, leading)
        with pytest.raises(Unavailable, match="may or may not"):
            await called(refused, replaced)
    with pytest.raises(Unavailable, match="busy"):
        await called(Unavailable("busy"), replaced)
    assert barriers == ["leading", "replaced"] * 2


async def test_work_starts_with_a_term_and_ends_with_it(tmp_path):
    consensus = FakeConsensus()
    router = LeaderRouter([SERVICE], consensus, Dial(None))
    running, terms = [], []

    @asynccontextmanager
    async def begin(term):
        terms.append(term)
        assert not running, "work of an earlier term is over"

        async def work() -> None:
            running.append(term.number)
            try:
                await asyncio.Event().wait()
            finally:
                running.remove(term.number)

        term.supervisor.start("work", work)
        yield {}

    work = asyncio.create_task(LeaderWork(consensus, consensus.store, router, begin).run())
    try:
        consensus.leadership.set(Leadership(term=3, here=True))
        await until(lambda: running == [3] and router.is_serving)
        await terms[0].store.commit([create(a_task("t1"))])
        consensus.leadership.set(Leadership(term=4, address="other:1"))
        assert not router.is_serving, "at once"
        assert terms[0].calls.is_over
        with pytest.raises(NotLeader):
            await terms[0].store.commit([create(a_task("t2"))])
        await until(lambda: not running)
        consensus.leadership.set(Leadership(term=5, here=True))
        await until(lambda: running == [5])
        with pytest.raises(NotLeader):
            await terms[0].store.commit([create(a_task("t3"))])
        await terms[1].store.commit([create(a_task("t4"))])
        assert consensus.terms == [3, 5]
        assert {task.id for task in terms[0].store.view.tasks} == {"t1", "t4"}
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def test_a_broken_invariant_of_the_work_ends_it_all():
    consensus = FakeConsensus()
    router = LeaderRouter([SERVICE], consensus, Dial(None))

    @asynccontextmanager
    async def begin(term):
        async def work() -> None:
            raise InvariantViolation("broken")

        term.supervisor.start("work", work)
        yield {}

    consensus.leadership.set(Leadership(term=3, here=True))
    with pytest.raises(InvariantViolation, match="broken"):
        await LeaderWork(consensus, consensus.store, router, begin).run()
    assert not router.is_serving
