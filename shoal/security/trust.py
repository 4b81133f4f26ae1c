"""The root certificates a node believes in, and the check that one of them issued a certificate.

Usually there is one root; while a root is being rotated there are two, hence a bundle. A node
certificate must be signed by a root *directly*: Shoal has no intermediate authorities, so a chain
of any other length is refused even where a TLS library would accept it.
"""

from __future__ import annotations

import hashlib

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import NameOID

from shoal.errors import InvalidArgument, Unauthenticated
from shoal.ids import ClusterId, NodeId, base36
from shoal.security.roles import ROLE_BY_UNIT, PeerIdentity

_BUNDLE_CERTIFICATES_MAX = 8
_BUNDLE_BYTES_MAX = 64 * 1024
DIGEST_LENGTH = 50
"""Characters of a root digest: 256 bits in base 36."""


class TrustBundle:
    """One or more root certificates."""

    __slots__ = ("_roots",)

    def __init__(self, root_pem: bytes) -> None:
        """Read the PEM certificates. Raises InvalidArgument if one is unreadable or not a CA."""
        self._roots = _load_roots(root_pem)

    @property
    def pem(self) -> bytes:
        """The roots as canonical PEM: 64 columns, no text between them."""
        return b"".join(root.public_bytes(serialization.Encoding.PEM) for root in self._roots)

    @property
    def digest(self) -> str:
        """SHA-256 of `pem` as 50 base-36 characters: what a join token carries."""
        return base36(int.from_bytes(hashlib.sha256(self.pem).digest(), "big"), DIGEST_LENGTH)

    def issued(self, certificate: x509.Certificate) -> bool:
        """Whether one of the roots signed the certificate itself."""
        return any(_signed_by(certificate, root) for root in self._roots)

    def issuer_key_id(self, certificate: x509.Certificate) -> str:
        """The key id of the root that signed the certificate; empty if none did."""
        return next((_key_id(root) for root in self._roots if _signed_by(certificate, root)), "")

    def identify(self, certificate: x509.Certificate) -> PeerIdentity:
        """Read node id, role and cluster from a certificate of this cluster.

        Raises Unauthenticated if no root issued it or its subject is not a node's. Validity in
        time is not looked at: callers know their own `now`.
        """
        if not self.issued(certificate):
            raise Unauthenticated("the certificate was not issued by this cluster's root")
        subject = certificate.subject
        role = ROLE_BY_UNIT.get(_only(subject, NameOID.ORGANIZATIONAL_UNIT_NAME))
        node_id = _only(subject, NameOID.COMMON_NAME)
        cluster_id = _only(subject, NameOID.ORGANIZATION_NAME)
        if role is None or not node_id or not cluster_id:
            raise Unauthenticated(
                "the certificate's subject does not name a node id (CN), a role (OU) and a "
                "cluster id (O)"
            )
        return PeerIdentity(node_id=NodeId(node_id), role=role, cluster_id=ClusterId(cluster_id))


def merge_roots(*root_pems: bytes) -> bytes:
    """Every root of several bundles once, in order, canonical PEM; empty bundles are passed over.

    Raises InvalidArgument if one is unreadable or not a CA.
    """
    found: dict[bytes, None] = {}
    for pem in filter(None, root_pems):
        for root in _load_roots(pem):
            found[root.public_bytes(serialization.Encoding.PEM)] = None
    return b"".join(found)


def key_id(certificate_pem: bytes) -> str:
    """The key id of a root, hexadecimal. Raises InvalidArgument."""
    return _key_id(load_certificate(certificate_pem))


def _key_id(certificate: x509.Certificate) -> str:
    """The id that the certificate says its key has, else the digest of the key."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest.hex()
    return found.value.digest.hex()


def root_digest(root_pem: bytes) -> str:
    """The digest a join token carries for these roots. Raises InvalidArgument if unreadable."""
    return TrustBundle(root_pem).digest


def load_certificate(certificate_pem: bytes) -> x509.Certificate:
    """Read one PEM certificate. Raises InvalidArgument."""
    try:
        return x509.load_pem_x509_certificate(certificate_pem)
    except ValueError as error:
        raise InvalidArgument(f"not a readable PEM certificate: {error}") from error


def _load_roots(root_pem: bytes) -> tuple[x509.Certificate, ...]:
    if len(root_pem) > _BUNDLE_BYTES_MAX:
        raise InvalidArgument(
            f"root certificates: {len(root_pem)} bytes, at most {_BUNDLE_BYTES_MAX} are accepted"
        )
    try:
        roots = tuple(x509.load_pem_x509_certificates(root_pem))
    except ValueError as error:
        raise InvalidArgument(f"root certificates: not readable PEM: {error}") from error
    if len(roots) > _BUNDLE_CERTIFICATES_MAX:
        raise InvalidArgument(
            f"root certificates: {len(roots)}, at most {_BUNDLE_CERTIFICATES_MAX} are accepted"
        )
    if not all(map(_is_authority, roots)):
        raise InvalidArgument("root certificates: one of them is not a certificate authority")
    return roots


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _signed_by(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _only(subject: x509.Name, oid: x509.ObjectIdentifier) -> str:
    """The one value of an attribute; empty when it is missing or there is more than one."""
    values = subject.get_attributes_for_oid(oid)
    value = values[0].value if len(values) == 1 else ""
    return value if isinstance(value, str) else ""
