"""Renewal over real gRPC: with the certificate, after its end, and for those who are not nodes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from manager.ca.core import new_join_tokens
from manager.ca.server import CaServer
from manager.store.store import Store
from shoal.api.v1 import ca_pb2 as pb
from shoal.api.v1 import types_pb2
from shoal.api.v1.ca_pb2_grpc import CaStub, add_CaServicer_to_server
from shoal.clock import SystemClock
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.plan import remove
from shoal.model.specs import ClusterSpec, NodeSpec
from shoal.model.types import BlacklistedCertificate, CaConfig, JoinTokens, NodeCertificate, RootCa
from shoal.security.grpc_tls import joiner_credentials, local_channel, secure_channel
from shoal.security.identity import NodeIdentity, make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.recovery import prove_expired
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.security.trust import key_id
from tests.support.managing import CLUSTER, ROOT, Served, a_store, put_now, refusal, served

TOKENS = new_join_tokens(ROOT.certificate_pem)
NODE = "n" * 25
HOUR_NS = 3600 * 10**9


def a_cluster(**fields) -> Cluster:
    return Cluster(
        id=CLUSTER,
        spec=ClusterSpec(ca=CaConfig(node_certificate_validity_ns=HOUR_NS)),
        root_ca=RootCa(
            certificate=ROOT.certificate_pem,
            key=ROOT.key_pem,
            join_tokens=JoinTokens(worker=TOKENS.worker, manager=TOKENS.manager),
        ),
        **fields,
    )


def a_certificate(*, root: RootCA = ROOT, age_s: int = 0, node_id: str = NODE) -> NodeIdentity:
    """Issued `age_s` seconds ago for an hour."""
    key = make_key()
    peer = PeerIdentity(node_id=node_id, role=Role.WORKER, cluster_id=CLUSTER)
    now_ns = time.time_ns() - age_s * 10**9
    certificate = root.sign(make_csr(key), peer, now_ns=now_ns, validity_s=3600)
    return make_identity(certificate, key, root.certificate_pem)


class Site:
    def __init__(self, at: Served, store: Store, proposer) -> None:
        self.at, self.store, self.proposer = at, store, proposer

    async def renew(self, identity: NodeIdentity, **fields) -> pb.IssueNodeCertificateResponse:
        async with self.at.channel(identity) as channel:
            return await issue(CaStub(channel), **fields)

    async def confirm(self, identity: NodeIdentity, names: NodeIdentity | None = None) -> None:
        async with self.at.channel(identity) as channel:
            await CaStub(channel).ConfirmNodeCertificate(
                pb.ConfirmNodeCertificateRequest(certificate=(names or identity).certificate_pem)
            )

    async def recover(self, identity: NodeIdentity) -> pb.IssueNodeCertificateResponse:
        """As a node whose certificate has expired does it."""
        credentials = joiner_credentials(ROOT.certificate_pem)
        async with secure_channel(f"127.0.0.1:{self.at.port}", credentials) as channel:
            return await issue(CaStub(channel), expired=identity)

    def put(self, row) -> None:
        put_now(self.store, self.proposer, row)

    @property
    def node(self) -> Node:
        node = self.store.view.nodes.get(NODE)
        assert node is not None
        return node


KEY = make_key()


async def issue(stub: CaStub, *, expired: NodeIdentity | None = None, token: str = ""):
    request = pb.IssueNodeCertificateRequest(csr=make_csr(KEY), token=token)
    if expired is not None:
        proof = prove_expired(expired.certificate_pem, expired.key_pem, request.csr)
        request.expired.certificate = proof.certificate_pem
        request.expired.signature = proof.signature
    return await stub.IssueNodeCertificate(request)


@pytest.fixture
async def site(tmp_path) -> AsyncIterator[Site]:
    clock = SystemClock()
    store, proposer = a_store([a_cluster(), Node(id=NODE)], clock)

    def add(server: grpc.aio.Server) -> None:
        add_CaServicer_to_server(CaServer(store, clock), server)

    async with served(add, tmp_path / "m.sock") as at:
        yield Site(at, store, proposer)


@pytest.mark.parametrize(("desired", "role"), [("WORKER", Role.WORKER), ("MANAGER", Role.MANAGER)])
async def test_a_node_renews_with_its_certificate_for_the_role_of_the_store(site, desired, role):
    site.put(site.node.replaced(spec=NodeSpec(desired_role=NodeRole[desired])))
    answer = await site.renew(a_certificate(age_s=1800))
    renewed = make_identity(answer.certificate, KEY, answer.root_certificate)
    assert renewed.peer == PeerIdentity(node_id=NODE, role=role, cluster_id=CLUSTER)
    assert (answer.node_id, answer.cluster_id) == (NODE, CLUSTER)
    assert answer.role == types_pb2.NodeRole.Value(f"NODE_ROLE_{desired}")
    left_ns = renewed.not_after_ns - time.time_ns()
    assert 0.9 * HOUR_NS < left_ns <= HOUR_NS
    assert len(site.store.view.nodes) == 1


async def test_a_removed_node_renews_nothing(site):
    await site.store.commit([remove(site.node)])
    for attempt in (site.renew(a_certificate()), site.recover(a_certificate(age_s=7200))):
        text = await refusal(attempt)
        assert text.startswith("PERMISSION_DENIED this node was removed from the cluster")


async def test_a_blacklisted_node_renews_nothing_although_it_has_a_row(site):
    black = {NODE: BlacklistedCertificate(expires_at_ns=time.time_ns() + HOUR_NS)}
    site.put(a_cluster(blacklisted_certificates=black))
    for attempt in (site.renew(a_certificate()), site.recover(a_certificate(age_s=7200))):
        assert "removed from the cluster" in await refusal(attempt)


async def test_an_expired_certificate_is_refused_by_the_handshake_and_renewed_by_its_proof(site):
    old = a_certificate(age_s=7200)
    assert (await refusal(site.renew(old))).startswith("UNAVAILABLE")
    answer = await site.recover(old)
    renewed = make_identity(answer.certificate, KEY, answer.root_certificate)
    assert renewed.peer == old.peer
    assert renewed.not_after_ns > time.time_ns()


async def test_the_nodes_own_manager_renews_over_the_socket(site):
    async with local_channel(site.at.socket_path) as channel:
        answer = await issue(CaStub(channel), expired=a_certificate(age_s=7200))
        assert answer.node_id == NODE
        text = await refusal(issue(CaStub(channel)))
    assert text.startswith("PERMISSION_DENIED a join token is needed")


async def test_a_proof_of_another_cluster_is_refused(site):
    now_ns = time.time_ns()
    other = RootCA.create(now_ns=now_ns)
    text = await refusal(site.recover(a_certificate(root=other, age_s=7200)))
    assert text.startswith("UNAUTHENTICATED the certificate was not issued by this cluster's root")
    key, peer = make_key(), PeerIdentity(node_id=NODE, role=Role.WORKER, cluster_id="d" * 25)
    certificate = ROOT.sign(make_csr(key), peer, now_ns=now_ns)
    foreign = make_identity(certificate, key, ROOT.certificate_pem)
    assert "is for another cluster" in await refusal(site.recover(foreign))


async def test_a_proof_and_a_token_do_not_go_together(site):
    both = site.renew(a_certificate(), expired=a_certificate(), token=TOKENS.worker)
    assert (await refusal(both)).startswith("INVALID_ARGUMENT token: must be empty")


async def test_confirming_closes_the_door_behind_older_certificates(site):
    old, new = a_certificate(age_s=9000), a_certificate(age_s=60)
    await site.recover(old)
    await site.confirm(new)
    assert site.node.certificate == NodeCertificate(
        issuer_key_id=key_id(ROOT.certificate_pem),
        not_before_ns=new.not_before_ns,
        not_after_ns=new.not_after_ns,
    )
    text = await refusal(site.recover(old))
    assert text.startswith("PERMISSION_DENIED the node has had a newer certificate")
    assert (await site.recover(new)).node_id == NODE


async def test_confirming_twice_or_with_an_older_certificate_writes_nothing(site):
    older, newer = a_certificate(age_s=600), a_certificate(age_s=60)
    await site.confirm(newer)
    entries = len(site.proposer.entries)
    await asyncio.gather(site.confirm(newer), site.confirm(older))
    assert len(site.proposer.entries) == entries
    assert site.node.certificate.not_before_ns == newer.not_before_ns


async def test_a_confirmed_renewal_is_not_asked_for_any_more(site):
    site.put(site.node.replaced(certificate=NodeCertificate(not_before_ns=1, renew=True)))
    await site.confirm(a_certificate())
    assert not site.node.certificate.renew


async def test_a_node_confirms_no_certificate_but_its_own(site):
    other = a_certificate(node_id="other")
    text = await refusal(site.confirm(a_certificate(), names=other))
    assert text == "PERMISSION_DENIED certificate: must be the caller's own"
    foreign = a_certificate(root=RootCA.create(now_ns=time.time_ns()))
    assert "not issued by this cluster's root" in await refusal(
        site.confirm(a_certificate(), names=foreign)
    )
    assert site.node.certificate is None


async def test_a_node_may_come_back_when_its_entry_in_the_blacklist_has_ended(site):
    site.put(a_cluster(blacklisted_certificates={NODE: BlacklistedCertificate(expires_at_ns=1)}))
    assert (await site.renew(a_certificate())).node_id == NODE


async def test_a_joiner_confirms_nothing(site):
    credentials = joiner_credentials(ROOT.certificate_pem)
    async with secure_channel(f"127.0.0.1:{site.at.port}", credentials) as channel:
        call = CaStub(channel).ConfirmNodeCertificate(pb.ConfirmNodeCertificateRequest())
        assert "not open to the role joiner" in await refusal(call)
