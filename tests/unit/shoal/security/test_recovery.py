"""The proof of a node whose certificate has expired: what it shows, and what does not pass."""

from __future__ import annotations

import pytest

from shoal.errors import InvalidArgument, PermissionDenied, Unauthenticated
from shoal.security.joiner import joiner_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.recovery import (
    PROOF_BYTES_MAX,
    RECOVERY_WINDOW_S,
    ExpiredProof,
    prove_expired,
    verify_expired,
)
from shoal.security.root import RootCA
from shoal.security.trust import TrustBundle
from tests.unit.shoal.security.support import DAY_NS, NOW_NS, a_node, forge

ROOT = RootCA.create(now_ns=NOW_NS)
TRUST = TrustBundle(ROOT.certificate_pem)
NODE = a_node(ROOT)
CSR = make_csr(make_key())
LATER_NS = NOW_NS + 100 * DAY_NS


def proof_of(node=NODE, csr: bytes = CSR) -> ExpiredProof:
    return prove_expired(node.certificate_pem, node.key_pem, csr)


def test_the_holder_of_an_expired_certificate_is_known_again():
    former = verify_expired(proof_of(), CSR, TRUST, now_ns=LATER_NS)
    assert former.peer == NODE.peer
    assert former.not_before_ns == NODE.not_before_ns


def test_the_window_ends():
    end_ns = NODE.not_after_ns + RECOVERY_WINDOW_S * 10**9
    verify_expired(proof_of(), CSR, TRUST, now_ns=end_ns)
    with pytest.raises(PermissionDenied, match=r"more than 90 days ago.*join again"):
        verify_expired(proof_of(), CSR, TRUST, now_ns=end_ns + 1)


def test_another_request_than_the_signed_one_is_refused():
    with pytest.raises(Unauthenticated, match="not signed with the key of the old certificate"):
        verify_expired(proof_of(), make_csr(make_key()), TRUST, now_ns=LATER_NS)


def test_a_certificate_without_its_key_is_refused():
    thief = a_node(ROOT, node_id="thief")
    signature = prove_expired(thief.certificate_pem, thief.key_pem, CSR).signature
    stolen = ExpiredProof(NODE.certificate_pem, signature)
    with pytest.raises(Unauthenticated, match="not signed"):
        verify_expired(stolen, CSR, TRUST, now_ns=LATER_NS)


def test_a_bare_signature_over_the_request_is_no_proof():
    """As a TLS handshake or another protocol might be made to give it."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from shoal.security.keys import load_key

    bare = load_key(NODE.key_pem).sign(CSR, ec.ECDSA(hashes.SHA256()))
    with pytest.raises(Unauthenticated, match="not signed"):
        verify_expired(ExpiredProof(NODE.certificate_pem, bare), CSR, TRUST, now_ns=LATER_NS)


def test_a_certificate_of_another_root_is_refused():
    foreign = a_node(RootCA.create(now_ns=NOW_NS))
    with pytest.raises(Unauthenticated, match="not issued by this cluster's root"):
        verify_expired(proof_of(foreign), CSR, TRUST, now_ns=LATER_NS)


@pytest.mark.parametrize("by", ["node", "joiner", "self"])
def test_a_forged_certificate_is_refused(by: str):
    joiner = joiner_identity()
    issuer = {
        "node": (NODE.certificate_pem, NODE.key_pem),
        "joiner": (joiner.certificate_pem, joiner.key_pem),
        "self": (b"", key := make_key()),
    }[by]
    certificate, key = forge(*issuer, key_pem=key if by == "self" else b"")
    forged = prove_expired(certificate, key, CSR)
    with pytest.raises(Unauthenticated, match="not issued by this cluster's root"):
        verify_expired(forged, CSR, TRUST, now_ns=LATER_NS)


def test_the_root_itself_is_no_node():
    own = prove_expired(ROOT.certificate_pem, ROOT.key_pem, CSR)
    with pytest.raises(Unauthenticated, match="does not name a node id"):
        verify_expired(own, CSR, TRUST, now_ns=LATER_NS)


def test_junk_is_refused():
    with pytest.raises(InvalidArgument, match="PEM certificate"):
        verify_expired(ExpiredProof(b"junk", b""), CSR, TRUST, now_ns=LATER_NS)
    with pytest.raises(Unauthenticated, match="bytes are accepted"):
        verify_expired(ExpiredProof(b"x" * PROOF_BYTES_MAX, b"y"), CSR, TRUST, now_ns=LATER_NS)


def test_a_repr_shows_nothing():
    assert repr(proof_of()) == "ExpiredProof(...)"
