"""Replacing the root: the stages as decisions, and both generations on one real port."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from manager.ca.live import LiveIdentity
from manager.ca.rotation import (
    BATCH_MAX,
    begin_here,
    finish,
    new_successor,
    next_batch,
    pending_nodes,
    successor_of,
    trust_of,
)
from manager.ca.rotation_loop import RotationLoop
from manager.ca.server import CaServer, authority_of
from shoal.api.v1 import ca_pb2 as pb
from shoal.api.v1.ca_pb2_grpc import CaStub, add_CaServicer_to_server
from shoal.clock import SystemClock
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.enums import NodeRole, NodeState
from shoal.model.objects import Cluster, Node
from shoal.model.plan import remove, update
from shoal.model.specs import NodeSpec
from shoal.model.types import ExtraJoinToken, JoinTokens, NodeCertificate, NodeStatus, RootCa
from shoal.security.authorize import Permissions, allow
from shoal.security.grpc_tls import channel_credentials, secure_channel, server_options
from shoal.security.identity import NodeIdentity, make_identity, write_identity
from shoal.security.interceptor import AuthorizationInterceptor
from shoal.security.keys import load_key, make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA, key_usage
from shoal.security.tokens import parse_join_token
from shoal.security.trust import key_id, load_certificate, root_digest
from shoal.wire.errors import ErrorInterceptor
from tests.support.managing import CLUSTER, ROOT, a_store, refusal, until

NOW_NS = time.time_ns()
YEAR_NS = 365 * 24 * 3600 * 10**9
NEW = RootCA.create(now_ns=NOW_NS)
EXTRA = ExtraJoinToken(name="ci", token="SWMTKN-1-old", uses_left=3, labels={"zone": "a"})
ROW = Cluster(
    id=CLUSTER,
    root_ca=RootCa(
        certificate=ROOT.certificate_pem,
        key=ROOT.key_pem,
        join_tokens=JoinTokens(worker="SWMTKN-1-w", manager="SWMTKN-1-m", extra=(EXTRA,)),
    ),
)
ROTATING = begin_here(ROW, new_successor(NEW), now_ns=NOW_NS)
MANAGES = NodeSpec(desired_role=NodeRole.MANAGER)
OLD_ID, NEW_ID = key_id(ROOT.certificate_pem), key_id(NEW.certificate_pem)


def authority_key_id(certificate: x509.Certificate) -> str:
    found = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    return (found.value.key_identifier or b"").hex()


def a_node(number: int, issuer: str | None, *, renew: bool = False, **fields) -> Node:
    certificate = None if issuer is None else NodeCertificate(issuer_key_id=issuer, renew=renew)
    return Node(id=f"n{number:03d}", certificate=certificate, **fields)


# -- decisions -------------------------------------------------------------------------------------


def test_the_beginning_keeps_the_old_root_and_signs_with_the_new_one():
    assert ROTATING.root_ca.certificate == ROOT.certificate_pem
    assert ROTATING.root_ca.join_tokens == ROW.root_ca.join_tokens
    assert trust_of(ROTATING.root_ca) == ROOT.certificate_pem + NEW.certificate_pem
    authority = authority_of(ROTATING)
    assert authority.root.certificate_pem == NEW.certificate_pem
    cross = load_certificate(authority.cross_signed_pem)
    assert authority_key_id(cross) == OLD_ID
    assert cross.public_key() == load_certificate(NEW.certificate_pem).public_key()


def test_one_rotation_at_a_time():
    with pytest.raises(FailedPrecondition, match="under way already"):
        begin_here(ROTATING, new_successor(RootCA.create(now_ns=NOW_NS)), now_ns=NOW_NS)


def test_whoever_has_no_certificate_of_the_new_root_is_pending_unless_it_has_left():
    left = a_node(4, OLD_ID).replaced(status=NodeStatus(NodeState.DOWN, left=True))
    nodes = [a_node(3, NEW_ID), a_node(2, OLD_ID), a_node(1, None), left]
    assert ROTATING.root_ca.rotation is not None
    pending = pending_nodes(ROTATING.root_ca.rotation, nodes)
    assert [node.id for node in pending] == ["n001", "n002"]


def test_nodes_are_asked_in_batches_and_only_once():
    pending = [a_node(number, OLD_ID) for number in range(70)]
    first = next_batch(pending)
    assert [node.id for node in first] == [node.id for node in pending[:BATCH_MAX]]
    assert all(node.certificate and node.certificate.renew for node in first)
    second = next_batch([*first, *pending[BATCH_MAX:]])
    assert [node.id for node in second] == [node.id for node in pending[BATCH_MAX : 2 * BATCH_MAX]]


def test_managers_come_when_no_worker_is_left():
    manager = a_node(1, None, role=NodeRole.MANAGER)
    assert next_batch([manager, a_node(2, OLD_ID, renew=True)]) == []
    (asked,) = next_batch([manager])
    assert asked.certificate == NodeCertificate(renew=True)


def test_the_end_drops_the_old_root_and_every_token():
    done = finish(ROTATING).root_ca
    assert (done.certificate, done.key) == (NEW.certificate_pem, NEW.key_pem)
    assert done.rotation is None
    assert done.last_forced_rotation == 1
    assert trust_of(done) == NEW.certificate_pem
    tokens = done.join_tokens
    digest = root_digest(NEW.certificate_pem)
    texts = [tokens.worker, tokens.manager, tokens.extra[0].token]
    assert {parse_join_token(text).digest for text in texts} == {digest}
    assert len({parse_join_token(text).secret for text in texts}) == 3
    assert tokens.extra[0].replaced(token=EXTRA.token) == EXTRA


# -- roots that are refused ------------------------------------------------------------------------


def own_root(**changes) -> tuple[bytes, bytes]:
    """A root as openssl might make it, with one thing different."""
    key = changes.pop("key", None) or x509_key()
    signer = changes.pop("signer", key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "My Root")])
    moment = load_certificate(NEW.certificate_pem).not_valid_before_utc
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(moment + changes.pop("starts_in", timedelta(0)))
        .not_valid_after(moment + changes.pop("ends_in", timedelta(days=800)))
        .add_extension(
            x509.BasicConstraints(ca=changes.pop("ca", True), path_length=None), critical=True
        )
    )
    usage = changes.pop("usage", None)
    if usage is not None:
        builder = builder.add_extension(usage, critical=True)
    assert not changes
    certificate = builder.sign(signer, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM), key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def x509_key():
    return load_key(make_key())


def replace_with(certificate: bytes, key: bytes) -> Cluster:
    return begin_here(ROW, successor_of(certificate, key, now_ns=NOW_NS), now_ns=NOW_NS)


def test_a_root_of_the_users_own_is_taken():
    certificate, key = own_root()
    rotation = replace_with(certificate, key).root_ca.rotation
    assert rotation is not None
    assert rotation.ca_certificate == certificate


def _unfit() -> dict[str, tuple[bytes, bytes, str]]:
    good, key = own_root()
    rsa_key = rsa.generate_private_key(65537, 2048)
    return {
        "no key": (good, b"", "ca key: must be given"),
        "no certificate": (b"", key, "ca certificate: must be given"),
        "junk": (b"junk", key, "exactly one PEM certificate"),
        "two": (good + good, key, "exactly one PEM certificate"),
        "other key": (good, make_key(), "does not belong"),
        "rsa": (*own_root(key=rsa_key), "ECDSA key on curve P-256"),
        "no authority": (*own_root(ca=False), "not a certificate authority"),
        "not self-signed": (*own_root(signer=x509_key()), "signed with its own key"),
        "may not sign": (
            *own_root(usage=key_usage(signs_certificates=False)),
            "must allow to sign certificates",
        ),
        "too short": (*own_root(ends_in=timedelta(days=364)), "at least one more year"),
        "future": (*own_root(starts_in=timedelta(days=2)), "not valid yet"),
        "present": (ROOT.certificate_pem, ROOT.key_pem, "key of the present root"),
    }


@pytest.mark.parametrize("case", _unfit().items(), ids=lambda case: case[0])
def test_an_unfit_root_is_refused(case):
    certificate, key, text = case[1]
    with pytest.raises(InvalidArgument, match=text):
        replace_with(certificate, key)


# -- both generations on one port ------------------------------------------------------------------


def certified(root: RootCA, role: Role, node_id: str, extra: bytes = b"") -> NodeIdentity:
    key = make_key()
    peer = PeerIdentity(node_id=node_id, role=role, cluster_id=CLUSTER)
    certificate = root.sign(make_csr(key), peer, now_ns=NOW_NS) + extra
    return make_identity(certificate, key, root.certificate_pem)


class Port:
    """The Ca service behind a LiveIdentity, as in the manager process."""

    def __init__(self, store, live: LiveIdentity) -> None:
        table = allow("shoal.api.v1.Ca", ("IssueNodeCertificate", "ConfirmNodeCertificate"), *Role)
        self.live = live
        self.server = grpc.aio.server(
            interceptors=[
                AuthorizationInterceptor(live.verifier, Permissions(table)),
                ErrorInterceptor(),
            ],
            options=server_options(),
        )
        add_CaServicer_to_server(CaServer(store, SystemClock()), self.server)
        self.number = self.server.add_secure_port("127.0.0.1:0", live.server_credentials)

    def stub(self, identity: NodeIdentity, roots: bytes) -> tuple[grpc.aio.Channel, CaStub]:
        credentials = channel_credentials(roots, identity.certificate_pem, identity.key_pem)
        channel = secure_channel(f"127.0.0.1:{self.number}", credentials)
        return channel, CaStub(channel)

    async def renew(self, identity: NodeIdentity, *, roots: bytes = b"") -> NodeIdentity:
        channel, stub = self.stub(identity, roots or identity.root_pem)
        async with channel:
            key = make_key()
            answer = await stub.IssueNodeCertificate(
                pb.IssueNodeCertificateRequest(csr=make_csr(key))
            )
            return make_identity(answer.certificate, key, answer.root_certificate)

    async def confirm(self, identity: NodeIdentity, *, roots: bytes = b"") -> None:
        channel, stub = self.stub(identity, roots or identity.root_pem)
        async with channel:
            await stub.ConfirmNodeCertificate(
                pb.ConfirmNodeCertificateRequest(certificate=identity.certificate_pem)
            )


async def test_a_rotation_from_beginning_to_end(tmp_path: Path):
    manager = certified(ROOT, Role.MANAGER, "m")
    worker = certified(ROOT, Role.WORKER, "w")
    store, _ = a_store(
        [ROW, Node(id="m", role=NodeRole.MANAGER, spec=MANAGES), Node(id="w")], SystemClock()
    )
    write_identity(tmp_path, manager)
    live = LiveIdentity(tmp_path, manager, SystemClock())
    port = Port(store, live)
    await port.server.start()
    loop = asyncio.create_task(RotationLoop(store, period_s=0.02).run())
    try:
        await store.commit(
            [update(begin_here(store.view.cluster, new_successor(NEW), now_ns=NOW_NS))]
        )
        live.believe(trust_of(store.view.cluster.root_ca))
        await until(lambda: store.view.nodes.get("w").certificate)
        assert store.view.nodes.get("w").certificate.renew
        assert store.view.nodes.get("m").certificate is None

        renewed = await port.renew(worker)
        assert authority_key_id(load_certificate(renewed.certificate_pem)) == NEW_ID
        assert renewed.root_pem == ROOT.certificate_pem + NEW.certificate_pem
        await port.confirm(renewed)
        await until(lambda: store.view.nodes.get("m").certificate)

        renewed_manager = await port.renew(manager)
        write_identity(tmp_path, renewed_manager)
        await live.reload()
        # A worker that was away all the time knows the old root only.
        late = certified(ROOT, Role.WORKER, "w")
        assert (await port.renew(late, roots=ROOT.certificate_pem)).peer == late.peer
        await port.confirm(renewed_manager)
        await until(lambda: store.view.cluster.root_ca.rotation is None)

        assert store.view.cluster.root_ca.certificate == NEW.certificate_pem
        live.believe(trust_of(store.view.cluster.root_ca))
        write_identity(tmp_path, renewed_manager.with_roots(NEW.certificate_pem))
        await live.reload()
        await port.confirm(renewed, roots=NEW.certificate_pem)
        assert (await refusal(port.renew(late))).startswith(("UNAVAILABLE", "UNAUTHENTICATED"))
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await port.server.stop(None)


async def test_a_node_that_is_away_holds_the_rotation_up_until_it_is_removed():
    store, _ = a_store([ROTATING, a_node(1, NEW_ID), a_node(2, OLD_ID)], SystemClock())
    loop = asyncio.create_task(RotationLoop(store, period_s=0.01).run())
    try:
        await until(lambda: store.view.nodes.get("n002").certificate.renew)
        await asyncio.sleep(0.1)
        assert store.view.cluster.root_ca.rotation is not None
        await store.commit([remove(store.view.nodes.get("n002"))])
        await until(lambda: store.view.cluster.root_ca.rotation is None)
    finally:
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)


@pytest.mark.parametrize("path_length", [0, 1, None])
async def test_the_old_root_vouches_for_the_new_one_in_a_handshake(tmp_path, path_length):
    """Also roots made before they allowed an authority below them."""
    old = with_path_length(path_length)
    cross = old.cross_sign(NEW.certificate_pem, now_ns=NOW_NS)
    key = make_key()
    peer = PeerIdentity(node_id="m", role=Role.MANAGER, cluster_id=CLUSTER)
    chain = NEW.sign(make_csr(key), peer, now_ns=NOW_NS) + cross
    manager = make_identity(chain, key, old.certificate_pem + NEW.certificate_pem)
    root_ca = ROW.root_ca.replaced(certificate=old.certificate_pem, key=old.key_pem)
    store, _ = a_store([ROW.replaced(root_ca=root_ca), Node(id="w")], SystemClock())
    port = Port(store, LiveIdentity(tmp_path, manager, SystemClock()))
    await port.server.start()
    try:
        worker = certified(old, Role.WORKER, "w")
        await port.confirm(worker)
        assert store.view.nodes.get("w").certificate is not None
    finally:
        await port.server.stop(None)


def with_path_length(path_length: int | None) -> RootCA:
    key = make_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm-ca")])
    start = load_certificate(NEW.certificate_pem).not_valid_before_utc
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(load_key(key).public_key())
        .serial_number(9)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(
            x509.SubjectKeyIdentifier.from_public_key(load_key(key).public_key()), critical=False
        )
        .sign(load_key(key), hashes.SHA256())
    )
    return RootCA(certificate.public_bytes(serialization.Encoding.PEM), key)
