"""The joiner identity: the certificate a node shows before it has one.

All of Shoal's gRPC lives on one port that always asks for a client certificate, because Python's
gRPC server cannot ask optionally. A node that wants to join shows this one. Key and certificate
are derived from a public constant, so every release and every node has the same and everybody may
use it: it grants what "TLS without a client certificate" grants elsewhere, the two calls of the
join. Servers trust it as an exact leaf; its key usage (no certificate signing) and CA:FALSE keep
it from vouching for anyone else, which `tests/unit/shoal/security/test_grpc_tls.py` holds against
the real gRPC server.

The bytes are part of the wire protocol: a change locks out joiners of other versions. The test
of the fingerprint fails first.
"""

from __future__ import annotations

import datetime as dt
from functools import cache

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal.security.keys import dump_key
from shoal.security.root import key_usage

_CONSTANT = b"shoal joiner identity, version 1: public on purpose"
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_NOT_BEFORE = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
_NOT_AFTER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280: "never"


class JoinerIdentity(msgspec.Struct, frozen=True):
    """Certificate and key every joining node uses. The key is public knowledge."""

    certificate_pem: bytes
    key_pem: bytes


@cache
def joiner_identity() -> JoinerIdentity:
    """The joiner identity; equal on every call, machine and release."""
    key = _key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "swarm-joiner"),
            x509.NameAttribute(NameOID.COMMON_NAME, "swarm-joiner"),
        ]
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(_NOT_BEFORE)
        .not_valid_after(_NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
        .sign(key, hashes.SHA256(), ecdsa_deterministic=True)
    )
    return JoinerIdentity(
        certificate_pem=certificate.public_bytes(serialization.Encoding.PEM),
        key_pem=dump_key(key),
    )


def _key() -> ec.EllipticCurvePrivateKey:
    # 48 bytes reduced modulo the group order: no bias worth the name, and never zero.
    stream = HKDF(algorithm=hashes.SHA256(), length=48, salt=None, info=b"p-256").derive(_CONSTANT)
    secret = int.from_bytes(stream, "big") % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(secret, ec.SECP256R1())
