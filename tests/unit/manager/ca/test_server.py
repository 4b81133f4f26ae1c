"""The Ca service: a certificate and a node for a valid token, nothing for anything else."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from manager.ca.core import new_join_tokens
from manager.ca.server import CaServer
from shoal.api.v1 import ca_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.api.v1.ca_pb2_grpc import CaStub, add_CaServicer_to_server
from shoal.clock import SystemClock
from shoal.model.enums import NodeAvailability, NodeMembership, NodeRole, NodeState
from shoal.model.objects import Cluster
from shoal.model.types import JoinTokens, RootCa
from shoal.security.grpc_tls import joiner_credentials, secure_channel
from shoal.security.identity import make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import Role
from tests.support.managing import CLUSTER, ROOT, a_store, refusal, served

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


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[tuple[CaStub, object]]:
    clock = SystemClock()
    store, _ = a_store([ROW], clock)

    def add(server: grpc.aio.Server) -> None:
        add_CaServicer_to_server(CaServer(store, clock), server)

    async with served(add, tmp_path / "m.sock") as at:
        credentials = joiner_credentials(ROOT.certificate_pem)
        async with secure_channel(f"127.0.0.1:{at.port}", credentials) as channel:
            yield CaStub(channel), store


def request(**fields) -> pb.IssueNodeCertificateRequest:
    fields = {"csr": make_csr(KEY), "token": TOKENS.worker, "hostname": "w1"} | fields
    return pb.IssueNodeCertificateRequest(**fields)


async def test_a_worker_joins_with_its_token(site):
    stub, store = site
    root = (await stub.GetRootCaCertificate(pb.GetRootCaCertificateRequest())).certificate
    assert root == ROOT.certificate_pem
    issued = await stub.IssueNodeCertificate(
        request(availability=types_pb2.NODE_AVAILABILITY_DRAIN)
    )
    identity = make_identity(issued.certificate, KEY, issued.root_certificate)
    assert identity.peer.node_id == issued.node_id
    assert (identity.peer.role, identity.peer.cluster_id) == (Role.WORKER, CLUSTER)
    node = store.view.nodes.get(issued.node_id)
    assert node.role is node.spec.desired_role is NodeRole.WORKER
    assert node.spec.membership is NodeMembership.ACCEPTED
    assert node.spec.availability is NodeAvailability.DRAIN
    assert node.status.state is NodeState.UNKNOWN
    assert store.view.nodes.resolve("w1") is node
    assert (await stub.IssueNodeCertificate(request())).node_id != issued.node_id


async def test_a_manager_joins_with_its_token_and_is_none_before_it_is_a_member(site):
    stub, store = site
    issued = await stub.IssueNodeCertificate(request(token=TOKENS.manager))
    identity = make_identity(issued.certificate, KEY, issued.root_certificate)
    assert identity.peer.role is Role.MANAGER
    assert issued.role == types_pb2.NODE_ROLE_MANAGER
    node = store.view.nodes.get(issued.node_id)
    assert (node.role, node.spec.desired_role) == (NodeRole.WORKER, NodeRole.MANAGER)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"token": ""}, "PERMISSION_DENIED a join token is needed"),
        (
            {"token": new_join_tokens(ROOT.certificate_pem).worker},
            "PERMISSION_DENIED the join token is not valid",
        ),
        ({"csr": b""}, "INVALID_ARGUMENT"),
        ({"csr": b"x" * 20_000}, "INVALID_ARGUMENT csr: 20000 bytes"),
        ({"hostname": "h" * 256}, "INVALID_ARGUMENT hostname: at most 255 characters"),
        ({"hostname": "a\x1b[31m"}, "INVALID_ARGUMENT hostname: must not hold control"),
    ],
    ids=range(6),
)
async def test_anything_else_is_refused_and_makes_no_node(site, fields, text):
    stub, store = site
    assert (await refusal(stub.IssueNodeCertificate(request(**fields)))).startswith(text)
    assert len(store.view.nodes) == 0


async def test_an_unknown_availability_is_refused(site):
    stub, store = site
    bad = request()
    bad.availability = 9
    text = await refusal(stub.IssueNodeCertificate(bad))
    assert text == "INVALID_ARGUMENT availability: 9 is not a valid NodeAvailability"
    assert len(store.view.nodes) == 0
