"""The root authority of a cluster: an ECDSA P-256 key that signs node certificates.

Subject, names and lifetimes are Swarm's: root `swarm-ca`, 20 years; node certificates 90 days,
back-dated one hour for clocks that lag, CN node id, OU role, O cluster id. A node certificate
carries a key usage *without* certificate signing: gRPC's TLS treats any certificate it trusts as
a possible issuer unless its key usage says otherwise, so CA:FALSE alone would not hold.
"""

from __future__ import annotations

import datetime as dt
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typing_extensions import override

from shoal.clock import NS_PER_S
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.security.keys import dump_key, load_csr, load_key
from shoal.security.roles import PeerIdentity
from shoal.security.trust import TrustBundle, key_id, load_certificate

ROOT_NAME = "swarm-ca"
ROOT_VALIDITY_S = 20 * 365 * 24 * 3600
NODE_VALIDITY_S = 90 * 24 * 3600
BACKDATE_S = 3600


class RootCA:
    """A root certificate with its key. The key leaves only through `key_pem`."""

    __slots__ = ("_certificate", "_key")

    def __init__(self, certificate_pem: bytes, key_pem: bytes) -> None:
        """Read both. Raises InvalidArgument if one is unreadable or they do not belong together."""
        TrustBundle(certificate_pem)  # refuses a certificate that is no authority
        self._certificate = load_certificate(certificate_pem)
        self._key = load_key(key_pem)
        if self._certificate.public_key() != self._key.public_key():
            raise InvalidArgument("the root key does not belong to the root certificate")

    @classmethod
    def create(cls, *, now_ns: int) -> Self:
        """A new root, valid for 20 years from `now_ns` (wall time)."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ROOT_NAME)])
        builder = _validity(x509.CertificateBuilder(), now_ns, ROOT_VALIDITY_S)
        certificate = (
            builder.subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # One authority may follow: the next root, signed by this one while it takes over.
            .add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate.public_bytes(serialization.Encoding.PEM), dump_key(key))

    @property
    def certificate_pem(self) -> bytes:
        """The root certificate, canonical PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, PKCS#8 PEM. For the encrypted store only."""
        return dump_key(self._key)

    @property
    def not_after_ns(self) -> int:
        """End of the root's validity, wall time."""
        return int(self._certificate.not_valid_after_utc.timestamp()) * NS_PER_S

    def cross_sign(self, successor_pem: bytes, *, now_ns: int) -> bytes:
        """The successor's name and key, certified by this root, PEM.

        A peer that knows only this root then believes what the successor signs.
        """
        new = load_certificate(successor_pem)
        end_s = min(self.not_after_ns // NS_PER_S, int(new.not_valid_after_utc.timestamp()))
        subject_key = x509.SubjectKeyIdentifier(bytes.fromhex(key_id(successor_pem)))
        certificate = (
            _validity(x509.CertificateBuilder(), now_ns, end_s - now_ns // NS_PER_S)
            .subject_name(new.subject)
            .issuer_name(self._certificate.subject)
            .public_key(new.public_key())
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(key_usage(signs_certificates=True), critical=True)
            .add_extension(subject_key, False)
            .add_extension(self._issuer_key, False)
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def request(self) -> bytes:
        """A signing request for this root's own name and key, PEM: for another root to certify."""
        builder = x509.CertificateSigningRequestBuilder().subject_name(self._certificate.subject)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    @property
    def _issuer_key(self) -> x509.AuthorityKeyIdentifier:
        """What tells two roots of one name apart: the id that this one's certificate gives it."""
        return x509.AuthorityKeyIdentifier(bytes.fromhex(key_id(self.certificate_pem)), None, None)

    def sign(
        self,
        csr_pem: bytes,
        identity: PeerIdentity,
        *,
        now_ns: int,
        validity_s: int = NODE_VALIDITY_S,
    ) -> bytes:
        """Certify the key of a signing request as a node, PEM.

        Of the request only the key is used. The certificate never outlives the root.
        Raises InvalidArgument for a bad request, a role that is not certified, an empty or
        overlong id, or a validity that is not positive; FailedPrecondition if the root has expired.
        That users may not ask for less than an hour is a rule for cluster settings.
        """
        csr = load_csr(csr_pem)
        _check_subject(identity, validity_s)
        builder = _validity(x509.CertificateBuilder(), now_ns, self._bounded(now_ns, validity_s))
        for extension, critical in self._extensions(csr.public_key(), identity):
            builder = builder.add_extension(extension, critical)
        certificate = (
            builder.subject_name(_subject(identity))
            .issuer_name(self._certificate.subject)
            .public_key(csr.public_key())
            .serial_number(x509.random_serial_number())
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(serialization.Encoding.PEM)

    def _bounded(self, now_ns: int, validity_s: int) -> int:
        left_s = int((self._certificate.not_valid_after_utc - _moment(now_ns)).total_seconds())
        if left_s <= 0:
            raise FailedPrecondition(
                "the cluster's root certificate has expired, it can sign nothing: check this "
                "manager's clock"
            )
        return min(validity_s, left_s)

    def _extensions(
        self, key: object, identity: PeerIdentity
    ) -> tuple[tuple[x509.ExtensionType, bool], ...]:
        names = [x509.DNSName(identity.node_id), x509.DNSName(identity.role.unit)]
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        subject_key = x509.SubjectKeyIdentifier.from_public_key(key)  # type: ignore[arg-type]
        return (
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage(signs_certificates=False), True),
            (x509.ExtendedKeyUsage(usages), False),
            (x509.SubjectAlternativeName(names), False),
            (subject_key, False),
            (self._issuer_key, False),
        )

    @override
    def __repr__(self) -> str:
        return f"RootCA({self._certificate.serial_number:x})"


def key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    """The key usage of a root, or of a certificate that must never act as an issuer."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _check_subject(identity: PeerIdentity, validity_s: int) -> None:
    if not identity.role.certified:
        raise InvalidArgument(f"role: {identity.role.value} gets no certificate")
    for field, text in (("node_id", identity.node_id), ("cluster_id", identity.cluster_id)):
        if not (1 <= len(text) <= 63 and text.isascii() and text.isalnum()):
            raise InvalidArgument(f"{field}: must be 1 to 63 ASCII letters and digits")
    if validity_s < 1:
        raise InvalidArgument(f"validity: {validity_s} s, at least 1 s")


def _subject(identity: PeerIdentity) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, identity.cluster_id),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role.unit),
            x509.NameAttribute(NameOID.COMMON_NAME, identity.node_id),
        ]
    )


def _validity(
    builder: x509.CertificateBuilder, now_ns: int, validity_s: int
) -> x509.CertificateBuilder:
    now = _moment(now_ns)
    builder = builder.not_valid_before(now - dt.timedelta(seconds=BACKDATE_S))
    return builder.not_valid_after(now + dt.timedelta(seconds=validity_s))


def _moment(now_ns: int) -> dt.datetime:
    """Certificates know whole seconds only."""
    return dt.datetime.fromtimestamp(now_ns // NS_PER_S, dt.UTC)
