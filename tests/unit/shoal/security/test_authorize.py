"""The permission table, and the identity of a peer from its certificate."""

from __future__ import annotations

import pytest

from shoal.errors import InvariantViolation, PermissionDenied, Unauthenticated
from shoal.ids import ClusterId
from shoal.security import peer as peer_module
from shoal.security.authorize import Permissions, allow
from shoal.security.joiner import joiner_identity
from shoal.security.peer import PeerVerifier, current_peer
from shoal.security.roles import JOINER, LOCAL, Role
from shoal.security.root import RootCA
from tests.unit.shoal.security.support import (
    CLUSTER,
    DAY_NS,
    NODE,
    NOW_NS,
    FixedClock,
    a_node,
    a_peer,
    forge,
)

ROOT = RootCA.create(now_ns=NOW_NS)
ALLOWED = Permissions(allow("t.S", ["Get", "Set"], Role.MANAGER, Role.LOCAL))
TCP = "ipv4:127.0.0.1:1"


def a_verifier(clock: FixedClock | None = None) -> PeerVerifier:
    return PeerVerifier(ROOT.certificate_pem, cluster_id=CLUSTER, clock=clock or FixedClock())


def context(pem: bytes) -> dict[str, list[bytes]]:
    return {"x509_pem_cert": [pem]}


@pytest.mark.parametrize("role", list(Role))
def test_only_the_roles_of_the_table_pass(role: Role):
    if role in {Role.MANAGER, Role.LOCAL}:
        ALLOWED.check("/t.S/Get", a_peer(role))
    else:
        with pytest.raises(PermissionDenied, match="only to local or manager"):
            ALLOWED.check("/t.S/Get", a_peer(role))


@pytest.mark.parametrize("method", ["/t.S/Delete", "/t.S/", "t.S/Get", "/t.S/get", ""])
def test_an_unknown_method_is_closed_to_everyone(method: str):
    for role in Role:
        with pytest.raises(PermissionDenied, match="open to nobody"):
            ALLOWED.check(method, a_peer(role))


def test_a_unix_socket_is_local():
    assert a_verifier().identify("unix:", {}) == LOCAL


def test_a_tcp_peer_without_certificate_is_nobody():
    for auth in ({}, {"x509_pem_cert": []}, {"x509_common_name": [b"unix:"]}):
        with pytest.raises(Unauthenticated, match="client certificate is needed"):
            a_verifier().identify(TCP, auth)


def test_the_joiner_is_known_by_its_certificate():
    assert a_verifier().identify(TCP, context(joiner_identity().certificate_pem)) == JOINER


def test_a_certificate_signed_by_the_joiner_is_refused():
    joiner = joiner_identity()
    evil, _ = forge(joiner.certificate_pem, joiner.key_pem)
    with pytest.raises(Unauthenticated, match="not issued by this cluster"):
        a_verifier().identify(TCP, context(evil))


def test_a_certificate_signed_by_a_node_is_refused():
    worker = a_node(ROOT)
    evil, _ = forge(worker.certificate_pem, worker.key_pem)
    with pytest.raises(Unauthenticated, match="not issued by this cluster"):
        a_verifier().identify(TCP, context(evil))


def test_another_cluster_under_the_same_root_is_refused():
    stranger = a_node(ROOT, cluster_id="d" * 25)
    with pytest.raises(Unauthenticated, match="another cluster"):
        a_verifier().identify(TCP, context(stranger.certificate_pem))


def test_a_certificate_that_expired_since_the_handshake_is_refused():
    clock = FixedClock()
    verifier = a_verifier(clock)
    pem = a_node(ROOT).certificate_pem
    assert verifier.identify(TCP, context(pem)) == a_peer()
    clock.ns += 91 * DAY_NS
    with pytest.raises(Unauthenticated, match="has expired"):
        verifier.identify(TCP, context(pem))


def test_a_removed_node_is_refused_although_it_was_cached():
    clock = FixedClock()
    verifier = a_verifier(clock)
    pem = a_node(ROOT).certificate_pem
    verifier.identify(TCP, context(pem))
    verifier.replace_removed({NODE: NOW_NS + DAY_NS})
    with pytest.raises(PermissionDenied, match="removed from the cluster"):
        verifier.identify(TCP, context(pem))
    clock.ns += DAY_NS
    assert verifier.identify(TCP, context(pem)) == a_peer()


def test_new_roots_forget_who_was_verified_by_the_old():
    verifier = a_verifier()
    pem = a_node(ROOT).certificate_pem
    verifier.identify(TCP, context(pem))
    verifier.replace_roots(RootCA.create(now_ns=NOW_NS).certificate_pem)
    with pytest.raises(Unauthenticated, match="not issued by this cluster"):
        verifier.identify(TCP, context(pem))


def test_the_cache_is_bounded_and_keeps_the_latest(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peer_module, "CACHED_PEERS_MAX", 3)
    verifier = a_verifier()
    for number in range(6):
        pem = a_node(ROOT, node_id=f"n{number}").certificate_pem
        assert verifier.identify(TCP, context(pem)).node_id == f"n{number}"
    assert verifier.cached_peers == 3


def test_damaged_certificates_are_refused():
    pem = a_node(ROOT).certificate_pem
    with pytest.raises(Exception, match="not a readable PEM certificate"):
        a_verifier().identify(TCP, context(pem[:-60]))


def test_outside_a_call_there_is_no_peer():
    with pytest.raises(InvariantViolation, match="outside"):
        current_peer()


def test_the_verifier_needs_an_authority():
    with pytest.raises(Exception, match="not a certificate authority"):
        PeerVerifier(
            joiner_identity().certificate_pem, cluster_id=ClusterId("c"), clock=FixedClock()
        )
