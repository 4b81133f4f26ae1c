"""Builders for the tests of trust: roots, nodes, and certificates nobody should accept."""

from __future__ import annotations

import datetime as dt
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from shoal.ids import ClusterId, NodeId
from shoal.security.identity import NodeIdentity, make_identity
from shoal.security.keys import load_key, make_csr, make_key
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.security.trust import load_certificate

NOW_NS = time.time_ns()
CLUSTER = ClusterId("c" * 25)
NODE = NodeId("n" * 25)
DAY_NS = 24 * 3600 * 10**9


class FixedClock:
    """A clock that shows what it is told."""

    def __init__(self, now_ns: int = NOW_NS) -> None:
        self.ns = now_ns

    def now_ns(self) -> int:
        return self.ns

    def monotonic_s(self) -> float:
        return self.ns / 1e9


def a_peer(role: Role = Role.WORKER, *, node_id: str = NODE, cluster_id: str = CLUSTER):
    return PeerIdentity(node_id=NodeId(node_id), role=role, cluster_id=ClusterId(cluster_id))


def a_node(root: RootCA, role: Role = Role.WORKER, **names: str) -> NodeIdentity:
    key = make_key()
    certificate = root.sign(make_csr(key), a_peer(role, **names), now_ns=NOW_NS)
    return make_identity(certificate, key, root.certificate_pem)


def forge(issuer_pem: bytes, issuer_key_pem: bytes, *, ca: bool = False, key_pem: bytes = b""):
    """A certificate for a would-be manager, signed by any key; returns (certificate, key)."""
    key_pem = key_pem or make_key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, CLUSTER),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-manager"),
            x509.NameAttribute(NameOID.COMMON_NAME, "evil"),
        ]
    )
    now = dt.datetime.fromtimestamp(NOW_NS // 10**9, dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(load_certificate(issuer_pem).subject if issuer_pem else name)
        .public_key(load_key(key_pem).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("swarm-manager")]), False)
        .sign(load_key(issuer_key_pem), hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM), key_pem
