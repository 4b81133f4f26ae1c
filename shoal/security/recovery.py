"""How a node whose certificate has expired proves that it was its own.

A TLS server refuses an expired certificate, so the node connects as a joiner and sends the old
certificate with a signature over its new signing request, made with the old key. The signature is
bound to the request, and only the holder of the new key can use what is issued for it: sending the
same proof again gains nothing. The signed text begins with a constant longer than the two random
values that a TLS handshake signs first, so no handshake can be made to yield such a signature.

What is verified here is the past: the certificate was issued by this cluster, for this key, and
its end is at most 90 days ago. Whether the node may still come back is for the caller to decide.
"""

from __future__ import annotations

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from typing_extensions import override

from shoal.clock import NS_PER_S
from shoal.errors import PermissionDenied, Unauthenticated
from shoal.security.keys import is_supported, load_key
from shoal.security.roles import PeerIdentity
from shoal.security.trust import TrustBundle, load_certificate

RECOVERY_WINDOW_S = 90 * 24 * 3600
"""How long after its end a certificate can still be renewed."""
PROOF_BYTES_MAX = 32 * 1024
_CONTEXT = b"shoal: a node whose certificate has expired asks for a new one, version 1\0"


class ExpiredProof(msgspec.Struct, frozen=True):
    """The old certificate, PEM, and the signature over the signing request, DER."""

    certificate_pem: bytes
    signature: bytes

    @override
    def __repr__(self) -> str:
        return "ExpiredProof(...)"


class FormerIdentity(msgspec.Struct, frozen=True):
    """Whom a certificate that has expired named, from when on, and the root that issued it."""

    peer: PeerIdentity
    not_before_ns: int
    issuer_key_id: str = ""


def prove_expired(certificate_pem: bytes, key_pem: bytes, csr_pem: bytes) -> ExpiredProof:
    """Sign a signing request with the key of the certificate that has expired."""
    signature = load_key(key_pem).sign(_CONTEXT + csr_pem, ec.ECDSA(hashes.SHA256()))
    return ExpiredProof(certificate_pem=certificate_pem, signature=signature)


def verify_expired(
    proof: ExpiredProof, csr_pem: bytes, trust: TrustBundle, *, now_ns: int
) -> FormerIdentity:
    """Whom the proof speaks for.

    Raises InvalidArgument for an unreadable certificate, Unauthenticated if no root of the bundle
    issued it or the signature is not by its key, PermissionDenied if it ended too long ago.
    """
    if len(proof.certificate_pem) + len(proof.signature) > PROOF_BYTES_MAX:
        raise Unauthenticated(f"expired: at most {PROOF_BYTES_MAX} bytes are accepted")
    certificate = load_certificate(proof.certificate_pem)
    peer = trust.identify(certificate)
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not is_supported(key):
        raise Unauthenticated("expired: the certificate's key is not ECDSA on curve P-256")
    try:
        key.verify(proof.signature, _CONTEXT + csr_pem, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Unauthenticated(
            "expired: the signing request is not signed with the key of the old certificate"
        ) from None
    end_ns = int(certificate.not_valid_after_utc.timestamp()) * NS_PER_S
    if now_ns > end_ns + RECOVERY_WINDOW_S * NS_PER_S:
        raise PermissionDenied(
            f"the certificate ended more than {RECOVERY_WINDOW_S // 86400} days ago, it cannot be "
            "renewed any more: let the node leave (`swarmctl leave --force`) and join again"
        )
    not_before_ns = int(certificate.not_valid_before_utc.timestamp()) * NS_PER_S
    return FormerIdentity(peer, not_before_ns, trust.issuer_key_id(certificate))
