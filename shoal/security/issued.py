"""Whether a certificate from somebody else's authority is one of this cluster's node certificates.

What an authority outside the cluster answers is believed in nothing: it must be directly under the
root, for the key that was asked for, with the very subject, names and usages that the cluster's own
signature would have given it. A name too many would let a worker serve as a manager; a certificate
without a key usage could act as an issuer.
"""

from __future__ import annotations

import datetime as dt
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from shoal.clock import NS_PER_S
from shoal.errors import FailedPrecondition, InvalidArgument, Unauthenticated
from shoal.security.keys import load_csr
from shoal.security.roles import PeerIdentity
from shoal.security.trust import TrustBundle, load_certificate

ExtensionT = TypeVar("ExtensionT", bound=x509.ExtensionType)

_MARKER = b"-----BEGIN CERTIFICATE-----"


def check_issued(
    certificate_pem: bytes,
    csr_pem: bytes,
    identity: PeerIdentity,
    *,
    root_pem: bytes,
    now_ns: int,
) -> None:
    """Refuse anything but a certificate of `root_pem` for this key and this node.

    Raises: FailedPrecondition naming what does not fit.
    """
    certificate = _one(certificate_pem)
    _check_chain(certificate, root_pem)
    if certificate.public_key() != load_csr(csr_pem).public_key():
        raise FailedPrecondition("the certificate is for another key than the request's")
    try:
        named = TrustBundle(root_pem).identify(certificate)
    except Unauthenticated as error:
        raise FailedPrecondition(error.message) from error
    if named != identity:
        raise FailedPrecondition(
            f"the certificate names {_shown(named)} instead of {_shown(identity)}: the authority"
            " must take the subject of the request as it is"
        )
    _check_extensions(certificate, {identity.node_id, identity.role.unit})
    _check_time(certificate, now_ns)


def check_cross_signed(
    certificate_pem: bytes, *, root_pem: bytes, successor_pem: bytes, now_ns: int
) -> None:
    """Refuse anything but the successor's name and key as an authority under `root_pem`.

    Raises: FailedPrecondition naming what does not fit.
    """
    certificate, successor = _one(certificate_pem), load_certificate(successor_pem)
    _check_chain(certificate, root_pem)
    if certificate.public_key() != successor.public_key():
        raise FailedPrecondition("the certificate is for another key than the new root's")
    if certificate.subject != successor.subject:
        raise FailedPrecondition("the certificate has another subject than the new root")
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        raise FailedPrecondition("the certificate is not one of an authority: CA:TRUE is missing")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is not None and not usage.key_cert_sign:
        raise FailedPrecondition("the certificate's key usage does not allow to sign certificates")
    _check_time(certificate, now_ns)


def _one(certificate_pem: bytes) -> x509.Certificate:
    if certificate_pem.count(_MARKER) != 1:
        raise FailedPrecondition("it must be exactly one PEM certificate, without intermediates")
    try:
        return load_certificate(certificate_pem)
    except InvalidArgument as error:
        raise FailedPrecondition(error.message) from error


def _check_chain(certificate: x509.Certificate, root_pem: bytes) -> None:
    if not TrustBundle(root_pem).issued(certificate):
        raise FailedPrecondition(
            "the certificate was not signed by the cluster's root itself: the authority has"
            " another key, or signs with an intermediate"
        )
    root_id = _extension(load_certificate(root_pem), x509.SubjectKeyIdentifier)
    named = _extension(certificate, x509.AuthorityKeyIdentifier)
    if root_id is not None and (named is None or named.key_identifier != root_id.digest):
        # Two roots may have one name: by this TLS tells which of them to look at.
        raise FailedPrecondition(
            "the certificate does not say which key of the root signed it (authority key id)"
        )


def _check_extensions(certificate: x509.Certificate, names: set[str]) -> None:
    constraints = _extension(certificate, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise FailedPrecondition("the certificate is one of an authority, not of a node")
    usage = _extension(certificate, x509.KeyUsage)
    if usage is None or usage.key_cert_sign or not usage.digital_signature:
        raise FailedPrecondition(
            "the certificate's key usage must be given, with digital signature and without"
            " certificate signing"
        )
    purposes = _extension(certificate, x509.ExtendedKeyUsage)
    both = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    if purposes is not None and not both <= set(purposes):
        raise FailedPrecondition(
            "the certificate must be for servers and for clients: the authority's profile needs"
            ' both "server auth" and "client auth"'
        )
    alternative = _extension(certificate, x509.SubjectAlternativeName)
    found = [] if alternative is None else [str(getattr(one, "value", one)) for one in alternative]
    dns = alternative is not None and all(isinstance(one, x509.DNSName) for one in alternative)
    if not dns or sorted(found) != sorted(names):
        raise FailedPrecondition(
            f"the certificate is for the names {found}, not for {sorted(names)}: the authority"
            " must take the hosts of the request as they are"
        )


def _check_time(certificate: x509.Certificate, now_ns: int) -> None:
    now = dt.datetime.fromtimestamp(now_ns // NS_PER_S, dt.UTC)
    if certificate.not_valid_before_utc > now:
        raise FailedPrecondition("the certificate is not valid yet: compare the clocks")
    if certificate.not_valid_after_utc <= now:
        raise FailedPrecondition("the certificate has expired already: compare the clocks")


def _extension(certificate: x509.Certificate, kind: type[ExtensionT]) -> ExtensionT | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    except ValueError as error:
        raise FailedPrecondition(f"the certificate's extensions cannot be read: {error}") from error


def _shown(identity: PeerIdentity) -> str:
    return f"CN={identity.node_id}, OU={identity.role.unit}, O={identity.cluster_id}"
