"""What a certificate is worth once its node was demoted or removed, on a real mTLS port."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import grpc
import pytest

from manager.leadership.interfaces import Leadership
from manager.leadership.standing import Standing
from shoal.aio.observed import Observed
from shoal.clock import SystemClock
from shoal.model.enums import NodeRole
from shoal.model.objects import Node
from shoal.model.plan import create, remove, update
from shoal.model.specs import NodeSpec
from shoal.security.authorize import Permissions, allow
from shoal.security.forwarded import render_caller
from shoal.security.grpc_tls import (
    channel_credentials,
    secure_channel,
    server_credentials,
    server_options,
)
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.peer import Caller, PeerVerifier, current_peer
from shoal.security.roles import PeerIdentity, Role
from tests.support.managing import CLUSTER, ROOT, a_store, an_identity, refusal

MANAGES = NodeSpec(desired_role=NodeRole.MANAGER)
HERE = Leadership(term=1, here=True)
TABLE = {
    **allow("t.S", ["Manage", "Follow", "Chat"], Role.MANAGER),
    **allow("t.S", ["Work"], Role.MANAGER, Role.WORKER),
    **allow("shoal.api.v1.Raft", ["Stream"], Role.MANAGER),
    **allow("shoal.api.v1.RaftMembership", ["Join"], Role.MANAGER),
}


class Leads:
    def __init__(self) -> None:
        self.leadership = Observed(HERE)


async def who(request: bytes, context) -> bytes:
    return current_peer().role.value.encode()


class Site:
    """A leader that knows n1 as a manager, and calls as n1 with its manager's certificate."""

    def __init__(self, store, consensus, port: int) -> None:
        self.store = store
        self.consensus = consensus
        self.port = port
        self.go_on = asyncio.Event()

    def channel(self, node_id: str = "n1") -> grpc.aio.Channel:
        identity = an_identity(node_id, Role.MANAGER)
        credentials = channel_credentials(
            ROOT.certificate_pem, identity.certificate_pem, identity.key_pem
        )
        return secure_channel(f"127.0.0.1:{self.port}", credentials)

    async def ask(self, method: str, node_id: str = "n1", **options) -> bytes:
        async with self.channel(node_id) as channel:
            name = method if method.startswith("/") else f"/t.S/{method}"
            return await channel.unary_unary(name)(b"", timeout=20, **options)

    async def demote(self) -> None:
        row = self.store.view.nodes.get("n1")
        await self.store.commit([update(row.replaced(role=NodeRole.WORKER, spec=NodeSpec()))])

    async def follow(self, request: bytes, context):
        yield b"before"
        await self.go_on.wait()
        yield b"after"

    async def chat(self, requests, context):
        async for request in requests:
            if request == b"silent":
                continue
            yield request


@asynccontextmanager
async def a_site():
    store, _ = a_store([Node(id="n1", role=NodeRole.MANAGER, spec=MANAGES)], SystemClock())
    consensus = Leads()
    verifier = PeerVerifier(ROOT.certificate_pem, cluster_id=CLUSTER, clock=SystemClock())
    gate = AuthorizationInterceptor(verifier, Permissions(TABLE), Standing(store, consensus).judge)
    server = grpc.aio.server(interceptors=[gate], options=server_options())
    own = an_identity("m", Role.MANAGER)
    tls = server_credentials(own.root_pem, own.certificate_pem, own.key_pem)
    site = Site(store, consensus, server.add_secure_port("127.0.0.1:0", tls.credentials))
    unary = grpc.unary_unary_rpc_method_handler(who)
    methods = {
        "Manage": unary,
        "Work": unary,
        "Follow": grpc.unary_stream_rpc_method_handler(site.follow),
        "Chat": grpc.stream_stream_rpc_method_handler(site.chat),
    }
    server.add_generic_rpc_handlers(
        [
            grpc.method_handlers_generic_handler("t.S", methods),
            grpc.method_handlers_generic_handler("shoal.api.v1.Raft", {"Stream": unary}),
            grpc.method_handlers_generic_handler("shoal.api.v1.RaftMembership", {"Join": unary}),
        ]
    )
    await server.start()
    try:
        yield site
    finally:
        await server.stop(None)


async def test_a_demoted_manager_is_a_worker_at_once():
    async with a_site() as site:
        assert await site.ask("Manage") == b"manager"
        await site.demote()
        assert "PERMISSION_DENIED" in await refusal(site.ask("Manage"))
        assert await site.ask("Work") == b"worker"  # its agent goes on until it has renewed


@pytest.mark.parametrize(
    ("role", "spec"), [(NodeRole.WORKER, MANAGES), (NodeRole.MANAGER, NodeSpec())]
)
async def test_on_its_way_in_or_out_a_manager_is_one(role: NodeRole, spec: NodeSpec):
    """While it joins, or as long as the others cannot let it go, it must be heard."""
    async with a_site() as site:
        row = site.store.view.nodes.get("n1")
        await site.store.commit([update(row.replaced(role=role, spec=spec))])
        assert await site.ask("Manage") == b"manager"


async def test_a_demoted_manager_cannot_call_for_others():
    async with a_site() as site:
        await site.store.commit([create(Node(id="n2", role=NodeRole.MANAGER, spec=MANAGES))])
        for identity in (
            PeerIdentity(node_id="n2", role=Role.MANAGER, cluster_id=CLUSTER),
            PeerIdentity(node_id="", role=Role.LOCAL, cluster_id=""),
        ):
            metadata = (render_caller(Caller(identity)),)
            if identity.role is Role.MANAGER:
                assert await site.ask("Manage", metadata=metadata) == b"manager"
        await site.demote()
        assert "only a manager may call for others" in await refusal(
            site.ask("Manage", metadata=metadata)
        )


async def test_a_demoted_manager_gets_nothing_through_another_one():
    """The one that passes its call on may lag, and take it for a manager still."""
    async with a_site() as site:
        await site.store.commit([create(Node(id="n2", role=NodeRole.MANAGER, spec=MANAGES))])
        await site.demote()
        identity = PeerIdentity(node_id="n1", role=Role.MANAGER, cluster_id=CLUSTER)
        metadata = (render_caller(Caller(identity)),)
        said = await refusal(site.ask("Manage", "n2", metadata=metadata))
        assert "not open to the role worker" in said


async def test_a_stream_that_was_open_ends_with_the_next_message():
    async with a_site() as site, site.channel() as channel:
        follow = channel.unary_stream("/t.S/Follow")(b"", timeout=20)
        assert await follow.read() == b"before"
        chat = channel.stream_stream("/t.S/Chat")(timeout=20)
        await chat.write(b"hello")
        assert await chat.read() == b"hello"
        await site.demote()
        site.go_on.set()
        assert "PERMISSION_DENIED" in await refusal(read_all(follow))
        await chat.write(b"silent")  # nothing would be answered to it
        assert "PERMISSION_DENIED" in await refusal(read_all(chat))


async def test_a_node_that_is_in_no_row_is_nobody_to_the_leader():
    """Also when the blacklist has forgotten it."""
    async with a_site() as site:
        await site.store.commit([remove(site.store.view.nodes.get("n1"))])
        for method in ("Manage", "Work"):
            said = await refusal(site.ask(method))
            assert said.startswith("PERMISSION_DENIED this node was removed")


async def test_a_manager_that_may_lag_leaves_it_to_the_leader():
    async with a_site() as site:
        await site.demote()
        site.consensus.leadership.set(Leadership(term=1, address="leader:2377"))
        assert await site.ask("Manage") == b"manager"


async def test_raft_and_the_way_into_it_have_judges_of_their_own():
    async with a_site() as site:
        await site.demote()
        for method in ("/shoal.api.v1.Raft/Stream", "/shoal.api.v1.RaftMembership/Join"):
            assert await site.ask(method) == b"manager"


async def read_all(call) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
