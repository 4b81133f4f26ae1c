"""Who signs, as Docker's API names an issuer: subject and public key of the root, in DER."""

from __future__ import annotations

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from shoal.security.trust import load_certificate


def issuer_of(root_pem: bytes) -> tuple[bytes, bytes]:
    """Subject and SubjectPublicKeyInfo of the first certificate. Raises: InvalidArgument."""
    root = load_certificate(root_pem)
    key = root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return root.subject.public_bytes(), key
