"""To an external authority and back: the real Control and Ca services, a real CFSSL server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from manager.ca.core import new_join_tokens
from manager.ca.external import ExternalAuthorities
from manager.ca.rotation_loop import RotationLoop
from manager.ca.server import CaServer
from manager.ca.signing import Signer
from manager.controlapi.server import ControlServer
from shoal.api.v1 import ca_pb2, control_pb2, specs_pb2, types_pb2
from shoal.api.v1.ca_pb2_grpc import CaStub, add_CaServicer_to_server
from shoal.api.v1.control_pb2_grpc import ControlStub, add_ControlServicer_to_server
from shoal.clock import SystemClock
from shoal.model.enums import NodeRole
from shoal.model.objects import Cluster, Node
from shoal.model.specs import NodeSpec
from shoal.model.types import JoinTokens, RootCa
from shoal.security.grpc_tls import joiner_credentials, local_channel, secure_channel
from shoal.security.identity import NodeIdentity, make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import Role
from shoal.security.root import RootCA
from shoal.security.trust import TrustBundle, key_id, load_certificate, merge_roots
from shoal.wire.objects import to_pb
from tests.support.cfssl import DAY, Cfssl
from tests.support.managing import CLUSTER, ROOT, a_store, an_identity, refusal, served, until

NEW = RootCA.create(now_ns=time.time_ns())
TOKENS = new_join_tokens(ROOT.certificate_pem)
ROW = Cluster(
    id=CLUSTER,
    root_ca=RootCa(
        certificate=ROOT.certificate_pem,
        key=ROOT.key_pem,
        join_tokens=JoinTokens(worker=TOKENS.worker, manager=TOKENS.manager),
    ),
)
MANAGES = NodeSpec(desired_role=NodeRole.MANAGER)


class Own:
    """The manager: certified by the cluster's root, until a test lets it renew."""

    def __init__(self) -> None:
        self.identity = an_identity("m", Role.MANAGER)
        self.root_pem = merge_roots(ROOT.certificate_pem, NEW.certificate_pem)


class Site:
    def __init__(self, store, at, control: ControlStub, cfssl: Cfssl, own: Own) -> None:
        self.store, self.at, self.control, self.cfssl, self.own = store, at, control, cfssl, own

    @property
    def cluster(self) -> Cluster:
        return self.store.view.cluster

    def external(self, root: RootCA | None = None) -> types_pb2.ExternalCa:
        pem = b"" if root is None else root.certificate_pem
        return types_pb2.ExternalCa(protocol="cfssl", url=self.cfssl.url, ca_certificate=pem)

    async def rotate(self, certificate: bytes = b"", key: bytes = b"", *external) -> None:
        await self.control.RotateRootCa(
            control_pb2.RotateRootCaRequest(
                ca_certificate=certificate, ca_key=key, external_cas=external
            )
        )

    async def update(self, *external: types_pb2.ExternalCa) -> None:
        spec = to_pb(self.cluster.spec, specs_pb2.ClusterSpec)
        del spec.ca.external_cas[:]
        spec.ca.external_cas.extend(external)
        await self.control.UpdateCluster(control_pb2.UpdateClusterRequest(spec=spec))

    async def join(self) -> NodeIdentity:
        key = make_key()
        credentials = joiner_credentials(self.own.root_pem)
        async with secure_channel(f"127.0.0.1:{self.at.port}", credentials) as channel:
            answer = await CaStub(channel).IssueNodeCertificate(
                ca_pb2.IssueNodeCertificateRequest(
                    csr=make_csr(key),
                    token=self.cluster.root_ca.join_tokens.worker,
                    hostname="w",
                )
            )
        return make_identity(answer.certificate, key, answer.root_certificate)

    async def renew(self, identity: NodeIdentity) -> NodeIdentity:
        """And confirm, as swarmd does."""
        key = make_key()
        async with self.at.channel(identity) as channel:
            answer = await CaStub(channel).IssueNodeCertificate(
                ca_pb2.IssueNodeCertificateRequest(csr=make_csr(key))
            )
        renewed = make_identity(answer.certificate, key, answer.root_certificate)
        async with self.at.channel(renewed) as channel:
            await CaStub(channel).ConfirmNodeCertificate(
                ca_pb2.ConfirmNodeCertificateRequest(certificate=renewed.certificate_pem)
            )
        return renewed

    async def to_the_authority(self) -> None:
        """The whole rotation: the cluster's root is the authority's, its key is not here."""
        await self.rotate(NEW.certificate_pem, b"", self.external())
        self.own.identity = await self.renew(self.own.identity)
        await until(lambda: self.cluster.root_ca.rotation is None)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    own, clock = Own(), SystemClock()
    store, _ = a_store([ROW, Node(id="m", role=NodeRole.MANAGER, spec=MANAGES)], clock)
    signer = Signer(ExternalAuthorities(own, clock))
    cfssl = Cfssl(tmp_path, NEW)
    await cfssl.start(ROOT.certificate_pem, NEW.certificate_pem)

    def add(server: grpc.aio.Server) -> None:
        add_CaServicer_to_server(CaServer(store, clock, signer), server)
        add_ControlServicer_to_server(ControlServer(store, clock, signer=signer), server)

    async with served(add, tmp_path / "m.sock") as at:
        at.believe(NEW.certificate_pem)
        loop = asyncio.create_task(RotationLoop(store, signer, period_s=0.02).run())
        async with local_channel(tmp_path / "m.sock") as channel:
            made = Site(store, at, ControlStub(channel), cfssl, own)
            own.identity = await made.renew(own.identity)
            yield made
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
    await cfssl.stop()


async def test_to_an_external_authority_and_back(site: Site):
    await site.rotate(NEW.certificate_pem, b"", site.external())
    assert len(site.cfssl.asked) == 1, "it was tried before anything changed"
    rotation = site.cluster.root_ca.rotation
    assert (rotation.ca_certificate, rotation.ca_key) == (NEW.certificate_pem, b"")
    joined = await site.join()  # with the old token, certified by the authority already
    assert issuer(joined) == key_id(NEW.certificate_pem)
    await site.renew(joined)
    site.own.identity = await site.renew(site.own.identity)
    await until(lambda: site.cluster.root_ca.rotation is None)
    root_ca = site.cluster.root_ca
    assert (root_ca.certificate, root_ca.key) == (NEW.certificate_pem, b"")
    (named,) = site.cluster.spec.ca.external_cas
    assert named.ca_certificate == NEW.certificate_pem
    asked = len(site.cfssl.asked)
    second = await site.join()
    assert len(site.cfssl.asked) == asked + 1

    # Back to a key of the cluster's own: the authority certifies it, once.
    await site.rotate()
    assert site.cfssl.asked[-1]["profile"] == "CA"
    fresh = site.cluster.root_ca.rotation
    assert fresh.ca_key
    site.own.root_pem = merge_roots(site.own.root_pem, fresh.ca_certificate)
    site.at.believe(NEW.certificate_pem, fresh.ca_certificate)
    for identity in (joined, second):
        await site.renew(identity)
    await site.renew(site.own.identity)
    await until(lambda: site.cluster.root_ca.rotation is None)
    assert site.cluster.root_ca.key
    assert site.cluster.spec.ca.external_cas == ()
    asked = len(site.cfssl.asked)
    await site.join()
    assert len(site.cfssl.asked) == asked


def issuer(identity: NodeIdentity) -> str:
    certificate = load_certificate(identity.certificate_pem)
    return TrustBundle(identity.root_pem).issuer_key_id(certificate)


@pytest.mark.parametrize("days", [0, 3])
async def test_authorities_that_date_back_by_more_or_less_than_the_cluster(site: Site, days: int):
    """Two roots' dates say nothing about which certificate is the newer one."""
    site.cfssl.validity = (-days * DAY, 30 * DAY)
    await site.to_the_authority()
    assert site.store.view.nodes.get("m").certificate.issuer_key_id == key_id(NEW.certificate_pem)
    await site.rotate()
    fresh = site.cluster.root_ca.rotation.ca_certificate
    site.own.root_pem = merge_roots(site.own.root_pem, fresh)
    site.at.believe(NEW.certificate_pem, fresh)
    old, site.own.identity = site.own.identity, await site.renew(site.own.identity)
    await until(lambda: site.cluster.root_ca.rotation is None)
    row = site.store.view.nodes.get("m")
    assert row.certificate.issuer_key_id == key_id(fresh)
    async with site.at.channel(site.own.identity) as channel:
        said = await refusal(
            CaStub(channel).ConfirmNodeCertificate(
                ca_pb2.ConfirmNodeCertificateRequest(certificate=old.certificate_pem)
            )
        )
    assert "not issued by this cluster's root" in said


async def test_an_authority_that_cannot_sign_changes_nothing(site: Site):
    site.cfssl.signing_root = RootCA.create(now_ns=time.time_ns())
    before = site.cluster
    for call in (
        site.rotate(NEW.certificate_pem, b"", site.external()),
        site.rotate(ROOT.certificate_pem, b"", site.external()),
        site.update(site.external(ROOT)),
    ):
        said = await refusal(call)
        assert said.startswith("FAILED_PRECONDITION the external certificate authority")
        assert "not signed by the cluster's root itself" in said
    assert site.cluster == before


async def test_what_holds_a_rotation_up_stands_in_the_row(site: Site):
    await site.rotate(NEW.certificate_pem, b"", site.external())
    site.cfssl.change = lambda wish: wish.update(hosts=[])
    said = await refusal(site.renew(site.own.identity))
    assert "is for the names" in said
    await until(lambda: "is for the names" in site.cluster.root_ca.rotation.message)
    site.cfssl.change = lambda _: None
    site.own.identity = await site.renew(site.own.identity)
    await until(lambda: site.cluster.root_ca.rotation is None)


async def test_a_join_that_is_not_certified_leaves_no_node(site: Site):
    await site.to_the_authority()
    await site.cfssl.stop()
    said = await refusal(site.join())
    assert "the external certificate authority signed nothing" in said
    assert [node.id for node in site.store.view.nodes] == ["m"]


async def test_a_root_without_a_key_keeps_an_authority(site: Site):
    await site.to_the_authority()
    said = await refusal(site.update())
    assert said.startswith("FAILED_PRECONDITION external ca: the key of the cluster's root")
    await site.update(site.external(), site.external())  # the same twice is no harm
    said = await refusal(site.rotate(ROOT.certificate_pem, b"", site.external(ROOT)))
    assert "from one external authority to another is not possible" in said


async def test_a_node_removed_while_it_is_certified_gets_nothing(site: Site):
    await site.to_the_authority()
    joined = await site.join()
    going_on, asked = asyncio.Event(), asyncio.Event()

    async def slowly(request):
        asked.set()
        await going_on.wait()
        return site.cfssl.answer(site.cfssl.sign(await request.json()))

    site.cfssl.fail = slowly
    renewal = asyncio.create_task(refusal(site.renew(joined)))
    await asked.wait()
    await site.control.RemoveNode(
        control_pb2.RemoveNodeRequest(node=joined.peer.node_id, force=True)
    )
    going_on.set()
    assert "PERMISSION_DENIED this node was removed" in await renewal


async def test_the_key_of_the_present_root_leaves_the_store_and_comes_back(site: Site, tmp_path):
    keeper = Cfssl(tmp_path, ROOT)
    await keeper.start()
    site.cfssl.port = keeper.port
    try:
        said = await refusal(site.rotate(ROOT.certificate_pem))
        assert "it is the present root" in said
        await site.rotate(ROOT.certificate_pem, b"", site.external())
        root_ca = site.cluster.root_ca
        assert (root_ca.certificate, root_ca.key, root_ca.rotation) == (
            ROOT.certificate_pem, b"", None,
        )  # fmt: skip
        await site.join()
        assert len(keeper.asked) == 2  # the trial and the node
        assert "does not belong" in await refusal(site.rotate(ROOT.certificate_pem, make_key()))
        await site.rotate(ROOT.certificate_pem, ROOT.key_pem)
        assert site.cluster.root_ca.key == ROOT.key_pem
        await site.update()
        await site.join()
    finally:
        await keeper.stop()


async def test_new_join_tokens_need_no_key(site: Site):
    await site.to_the_authority()
    old = site.cluster.root_ca.join_tokens
    await site.control.UpdateCluster(control_pb2.UpdateClusterRequest(rotate_worker_token=True))
    new = site.cluster.root_ca.join_tokens
    assert (new.worker != old.worker, new.manager == old.manager) == (True, True)
    await site.join()
