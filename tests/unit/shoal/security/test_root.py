"""The root authority, signing requests and the trust bundle."""

from __future__ import annotations

import datetime as dt

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from shoal.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from shoal.security.keys import load_csr, load_key, make_csr, make_key
from shoal.security.roles import Role
from shoal.security.root import RootCA
from shoal.security.trust import TrustBundle, load_certificate
from tests.unit.shoal.security.support import (
    CLUSTER,
    DAY_NS,
    NODE,
    NOW_NS,
    a_node,
    a_peer,
    forge,
)

ROOT = RootCA.create(now_ns=NOW_NS)
NOW = dt.datetime.fromtimestamp(NOW_NS // 10**9, dt.UTC)
PEM = serialization.Encoding.PEM


def a_request(key) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(PEM)


def test_the_root_is_swarm_ca_for_twenty_years():
    root = load_certificate(ROOT.certificate_pem)
    assert root.subject.rfc4514_string() == "CN=swarm-ca"
    assert root.not_valid_before_utc == NOW - dt.timedelta(hours=1)
    assert root.not_valid_after_utc == NOW + dt.timedelta(days=20 * 365)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize("role", [Role.MANAGER, Role.WORKER])
def test_a_node_certificate_says_who_and_for_how_long(role: Role):
    pem = ROOT.sign(make_csr(make_key()), a_peer(role), now_ns=NOW_NS)
    node = load_certificate(pem)
    names = node.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert node.subject.rfc4514_string() == f"CN={NODE},OU=swarm-{role.value},O={CLUSTER}"
    assert names.get_values_for_type(x509.DNSName) == [NODE, f"swarm-{role.value}"]
    assert node.not_valid_before_utc == NOW - dt.timedelta(hours=1)
    assert node.not_valid_after_utc == NOW + dt.timedelta(days=90)
    assert TrustBundle(ROOT.certificate_pem).identify(node) == a_peer(role)


def test_a_node_certificate_cannot_sign():
    node = load_certificate(a_node(ROOT).certificate_pem)
    usage = node.extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert not usage.value.key_cert_sign
    assert not node.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_the_requested_subject_is_ignored():
    wish = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(wish)
    csr = builder.sign(load_key(make_key()), hashes.SHA256()).public_bytes(PEM)
    node = load_certificate(ROOT.sign(csr, a_peer(Role.WORKER), now_ns=NOW_NS))
    assert TrustBundle(ROOT.certificate_pem).identify(node).role is Role.WORKER


def test_a_certificate_never_outlives_the_root():
    late_ns = NOW_NS + (20 * 365 - 1) * DAY_NS
    root = load_certificate(ROOT.certificate_pem)
    node = load_certificate(ROOT.sign(make_csr(make_key()), a_peer(), now_ns=late_ns))
    assert node.not_valid_after_utc == root.not_valid_after_utc


def test_an_expired_root_signs_nothing():
    with pytest.raises(FailedPrecondition, match="root certificate has expired"):
        ROOT.sign(make_csr(make_key()), a_peer(), now_ns=NOW_NS + 20 * 365 * DAY_NS)


@pytest.mark.parametrize("role", [Role.JOINER, Role.LOCAL])
def test_only_managers_and_workers_are_certified(role: Role):
    with pytest.raises(InvalidArgument, match=f"role: {role.value}"):
        ROOT.sign(make_csr(make_key()), a_peer(role), now_ns=NOW_NS)


@pytest.mark.parametrize("node_id", ["", "x" * 64, "a.b", "*", "é"])
def test_an_id_must_be_a_plain_word(node_id: str):
    with pytest.raises(InvalidArgument, match="node_id"):
        ROOT.sign(make_csr(make_key()), a_peer(node_id=node_id), now_ns=NOW_NS)


def test_a_certificate_must_be_valid_for_some_time():
    with pytest.raises(InvalidArgument, match="at least 1 s"):
        ROOT.sign(make_csr(make_key()), a_peer(), now_ns=NOW_NS, validity_s=0)


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())],
    ids=["rsa", "p384"],
)
def test_other_kinds_of_keys_are_refused(key):
    with pytest.raises(InvalidArgument, match="P-256"):
        load_csr(a_request(key))
    pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(InvalidArgument, match="P-256"):
        load_key(pem)


def test_a_request_signed_by_another_key_is_refused():
    request = x509.load_pem_x509_csr(make_csr(make_key()))
    der = bytearray(request.public_bytes(serialization.Encoding.DER))
    point = request.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    other = load_key(make_key()).public_key()
    at = bytes(der).index(point)
    der[at : at + len(point)] = other.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    swapped = x509.load_der_x509_csr(bytes(der)).public_bytes(PEM)
    with pytest.raises(InvalidArgument, match="signature does not match"):
        ROOT.sign(swapped, a_peer(), now_ns=NOW_NS)


@pytest.mark.parametrize("csr", [b"", b"nonsense", b"\xff\x00", b"x" * 20_000])
def test_an_unreadable_request_is_refused(csr: bytes):
    with pytest.raises(InvalidArgument, match="csr: "):
        load_csr(csr)


def test_a_broken_key_is_not_quoted():
    broken = make_key()[:120]
    with pytest.raises(InvalidArgument) as caught:
        load_key(broken)
    assert broken.decode()[40:100] not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_root_survives_the_store():
    again = RootCA(ROOT.certificate_pem, ROOT.key_pem)
    pem = again.sign(make_csr(make_key()), a_peer(), now_ns=NOW_NS)
    assert TrustBundle(ROOT.certificate_pem).issued(load_certificate(pem))


def test_a_root_with_a_foreign_key_is_refused():
    with pytest.raises(InvalidArgument, match="does not belong"):
        RootCA(ROOT.certificate_pem, make_key())


def test_a_root_hides_its_key():
    assert "PRIVATE" not in repr(ROOT)
    assert str(load_key(ROOT.key_pem).private_numbers().private_value) not in repr(ROOT)


def test_a_bundle_believes_both_roots_of_a_rotation():
    new = RootCA.create(now_ns=NOW_NS)
    bundle = TrustBundle(ROOT.certificate_pem + new.certificate_pem)
    for root in (ROOT, new):
        assert bundle.issued(load_certificate(a_node(root).certificate_pem))


def test_a_foreign_certificate_is_no_identity():
    foreign = a_node(RootCA.create(now_ns=NOW_NS))
    with pytest.raises(Unauthenticated, match="not issued by this cluster"):
        TrustBundle(ROOT.certificate_pem).identify(load_certificate(foreign.certificate_pem))


def test_the_root_itself_is_no_identity():
    with pytest.raises(Unauthenticated, match="does not name"):
        TrustBundle(ROOT.certificate_pem).identify(load_certificate(ROOT.certificate_pem))


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (b"", "not readable"),
        (b"x" * 70_000, "at most 65536"),
        (ROOT.certificate_pem * 9, "at most 8"),
        (a_node(ROOT).certificate_pem, "not a certificate authority"),
        (forge(b"", (key := make_key()), key_pem=key)[0], "not a certificate authority"),
    ],
)
def test_a_bundle_of_anything_else_is_refused(pem: bytes, reason: str):
    with pytest.raises(InvalidArgument, match=reason):
        TrustBundle(pem)
