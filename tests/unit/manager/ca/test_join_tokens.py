"""Join tokens with limits, made and used over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from manager.ca.core import new_join_tokens
from manager.ca.server import CaServer
from manager.controlapi.server import ControlServer
from manager.controlapi.tokens import TOKENS_MAX
from shoal.api.v1 import ca_pb2, control_pb2, types_pb2
from shoal.api.v1.ca_pb2_grpc import CaStub, add_CaServicer_to_server
from shoal.api.v1.control_pb2_grpc import ControlStub, add_ControlServicer_to_server
from shoal.model.objects import Cluster
from shoal.model.types import JoinTokens, RootCa
from shoal.security.grpc_tls import joiner_credentials, local_channel, secure_channel
from shoal.security.keys import make_csr, make_key
from shoal.security.tokens import parse_join_token
from tests.support.managing import CLUSTER, ROOT, HandClock, a_store, refusal, served

TOKENS = new_join_tokens(ROOT.certificate_pem)
ROW = Cluster(
    id=CLUSTER,
    root_ca=RootCa(
        certificate=ROOT.certificate_pem,
        key=ROOT.key_pem,
        join_tokens=JoinTokens(worker=TOKENS.worker, manager=TOKENS.manager),
    ),
)
KEY = make_key()
HOUR_NS = 3600 * 10**9


class Site:
    def __init__(self, store, clock: HandClock, control: ControlStub, ca: CaStub) -> None:
        self.store, self.clock, self.control, self.ca = store, clock, control, ca

    async def create(self, name: str = "", **fields) -> types_pb2.ExtraJoinToken:
        request = control_pb2.CreateJoinTokenRequest(name=name, **fields)
        return (await self.control.CreateJoinToken(request)).token

    async def join(self, token: str) -> ca_pb2.IssueNodeCertificateResponse:
        return await self.ca.IssueNodeCertificate(
            ca_pb2.IssueNodeCertificateRequest(csr=make_csr(KEY), token=token, hostname="w")
        )

    @property
    def extra(self):
        return self.store.view.cluster.root_ca.join_tokens.extra


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[Site]:
    clock = HandClock()
    store, _ = a_store([ROW], clock)

    def add(server: grpc.aio.Server) -> None:
        add_CaServicer_to_server(CaServer(store, clock), server)
        add_ControlServicer_to_server(ControlServer(store, clock), server)

    async with served(add, tmp_path / "m.sock") as at:
        credentials = joiner_credentials(ROOT.certificate_pem)
        async with (
            local_channel(at.socket_path) as local,
            secure_channel(f"127.0.0.1:{at.port}", credentials) as joiner,
        ):
            yield Site(store, clock, ControlStub(local), CaStub(joiner))


async def test_a_token_sets_the_labels_that_it_was_made_with(site):
    made = await site.create("ci", labels={"zone": "a", "disk": "ssd"}, uses=5, ttl_ns=HOUR_NS)
    assert parse_join_token(made.token).digest == parse_join_token(TOKENS.worker).digest
    assert made.expires_at_ns == site.clock.now_ns() + HOUR_NS
    joined = await site.join(made.token)
    node = site.store.view.nodes.get(joined.node_id)
    assert node.spec.annotations.labels == {"zone": "a", "disk": "ssd"}
    assert site.extra[0].uses_left == 4
    plain = await site.join(TOKENS.worker)
    assert site.store.view.nodes.get(plain.node_id).spec.annotations.labels == {}


async def test_a_used_up_token_is_gone(site):
    made = await site.create("twice", uses=2)
    await site.join(made.token)
    await site.join(made.token)
    assert site.extra == ()
    text = await refusal(site.join(made.token))
    assert text.startswith("PERMISSION_DENIED the join token is not valid for this cluster, or was")
    assert len(site.store.view.nodes) == 2


async def test_many_at_once_get_no_more_than_the_uses(site):
    made = await site.create("five", uses=5)
    results = await asyncio.gather(
        *(site.join(made.token) for _ in range(20)), return_exceptions=True
    )
    assert sum(not isinstance(result, Exception) for result in results) == 5
    assert len(site.store.view.nodes) == 5
    assert all(
        result.code() is grpc.StatusCode.PERMISSION_DENIED
        for result in results
        if isinstance(result, grpc.aio.AioRpcError)
    )


async def test_another_change_of_the_cluster_does_not_lose_a_use(site):
    """The commit of the join is checked against the cluster's version."""
    made = await site.create("raced", uses=50)

    async def rename() -> None:
        for number in range(10):
            await site.create(f"other{number}")

    await asyncio.gather(rename(), *(site.join(made.token) for _ in range(10)))
    (raced,) = [token for token in site.extra if token.name == "raced"]
    assert raced.uses_left == 40


async def test_an_expired_token_is_refused_by_name_and_goes_with_the_next_change(site):
    made = await site.create("short", ttl_ns=HOUR_NS)
    site.clock.advance(3599)
    await site.join(made.token)
    site.clock.advance(1)
    text = await refusal(site.join(made.token))
    assert text.startswith("PERMISSION_DENIED the join token short has expired: make another one")
    await site.create("short")
    assert [token.name for token in site.extra] == ["short"]
    assert site.extra[0].token != made.token


async def test_a_removed_token_is_worthless(site):
    made = await site.create()
    assert len(made.name) == 12
    await site.control.RemoveJoinToken(control_pb2.RemoveJoinTokenRequest(name=made.name))
    assert "not valid for this cluster" in await refusal(site.join(made.token))
    again = site.control.RemoveJoinToken(control_pb2.RemoveJoinTokenRequest(name=made.name))
    assert (await refusal(again)).startswith(f"NOT_FOUND join token {made.name} not found")


async def test_rotating_the_workers_token_keeps_the_others(site):
    made = await site.create("ci")
    await site.control.UpdateCluster(control_pb2.UpdateClusterRequest(rotate_worker_token=True))
    assert "not valid" in await refusal(site.join(TOKENS.worker))
    await site.join(made.token)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "a b"}, "join token name: 'a b' must be letters and digits"),
        ({"ttl_ns": -1}, "ttl: must be from 1s"),
        ({"ttl_ns": 1}, "ttl: must be from 1s"),
        ({"uses": 100_001}, "uses: at most 100000"),
        ({"labels": {"": "x"}}, "labels: '' must not be empty"),
        ({"labels": {"k": "v" * 256}}, "labels: 'k' is longer than 256"),
        ({"labels": {f"k{n}": "" for n in range(65)}}, "labels: 65, at most 64"),
        ({"role": 7}, "role: must be worker or manager"),
    ],
)
async def test_limits_out_of_range_are_refused(site, fields, text):
    answer = await refusal(site.create(**{"name": "t"} | fields))
    assert answer.startswith(f"INVALID_ARGUMENT {text}")
    assert site.extra == ()


async def test_names_are_unique_and_tokens_few(site):
    for number in range(TOKENS_MAX):
        await site.create(f"t{number}")
    assert (await refusal(site.create("t0"))).startswith("ALREADY_EXISTS join token t0 exists")
    assert (await refusal(site.create("more"))).startswith("RESOURCE_EXHAUSTED there are 100")
