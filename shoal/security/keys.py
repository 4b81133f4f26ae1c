"""Private keys and certificate signing requests: ECDSA on P-256 and nothing else.

One algorithm keeps every certificate of a cluster equally strong and the code short. Keys travel
as PKCS#8 PEM bytes; no function here puts key material into a message, a log or a repr.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shoal.errors import InvalidArgument

_CSR_BYTES_MAX = 16 * 1024


def make_key() -> bytes:
    """A new private key, PKCS#8 PEM, not encrypted."""
    return dump_key(ec.generate_private_key(ec.SECP256R1()))


def dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PKCS#8 PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def is_encrypted(key_pem: bytes) -> bool:
    """Whether a PEM file holds a private key that only a passphrase opens."""
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----" in key_pem


def encrypt_key(key_pem: bytes, passphrase: bytes) -> bytes:
    """The same key as encrypted PKCS#8 PEM, which openssl reads too. Raises: InvalidArgument."""
    return load_key(key_pem).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase),
    )


def decrypt_key(key_pem: bytes, passphrase: bytes) -> bytes | None:
    """The key as `make_key` gives it, None if the passphrase does not open it."""
    try:
        key = serialization.load_pem_private_key(key_pem, password=passphrase)
    except (ValueError, TypeError):
        return None
    return dump_key(key) if isinstance(key, ec.EllipticCurvePrivateKey) else None


def load_key(key_pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a P-256 private key. Raises InvalidArgument, which never quotes the key."""
    try:
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        # The cause is dropped on purpose: parsers like to quote what they could not parse.
        raise InvalidArgument(
            f"the private key is not readable PEM ({type(error).__name__})"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not is_supported(key.public_key()):
        raise InvalidArgument("the private key must be an ECDSA key on curve P-256")
    return key


def make_csr(key_pem: bytes) -> bytes:
    """A PEM signing request for the key.

    The subject is a placeholder: the authority decides node id and role, never the requester.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "swarm-node")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(load_key(key_pem), hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def load_csr(csr_pem: bytes) -> x509.CertificateSigningRequest:
    """Read a signing request and check that its sender holds the key.

    Raises InvalidArgument for a request that is too long, unreadable, not signed by its own key,
    or for another kind of key than ECDSA P-256.
    """
    if len(csr_pem) > _CSR_BYTES_MAX:
        raise InvalidArgument(f"csr: {len(csr_pem)} bytes, at most {_CSR_BYTES_MAX} are accepted")
    try:
        csr = x509.load_pem_x509_csr(csr_pem)
        supported = is_supported(csr.public_key())
    except Exception as error:  # parsers of hostile input raise many types
        raise InvalidArgument(f"csr: not a readable PEM signing request: {error}") from error
    if not supported:
        raise InvalidArgument("csr: the key must be an ECDSA key on curve P-256")
    if not csr.is_signature_valid:
        raise InvalidArgument("csr: the signature does not match the key in the request")
    return csr


def is_supported(key: object) -> bool:
    """Whether a public key is ECDSA on P-256."""
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
