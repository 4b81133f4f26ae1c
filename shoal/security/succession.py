"""Which root may take over from another: rules on two certificates, whoever holds the keys."""

from __future__ import annotations

import datetime as dt

from cryptography import x509

from shoal.clock import NS_PER_S
from shoal.errors import InvalidArgument
from shoal.security.trust import TrustBundle, key_id, load_certificate

SUCCESSOR_VALIDITY_MIN = dt.timedelta(days=365)
"""How long a root must still be valid to take over."""


def check_successor(present_pem: bytes, successor_pem: bytes, *, now_ns: int) -> None:
    """Refuse a root that cannot take over from the present one.

    Raises InvalidArgument if it is not exactly one certificate, not self-signed, may not sign
    certificates, is not valid now and for another year, or has the key of the present one.
    """
    check_root(successor_pem)
    present, new = load_certificate(present_pem), load_certificate(successor_pem)
    now = dt.datetime.fromtimestamp(now_ns // NS_PER_S, dt.UTC)
    if new.public_key() == present.public_key():
        raise InvalidArgument("ca certificate: it has the key of the present root: make another")
    if key_id(successor_pem) == key_id(present_pem):
        raise InvalidArgument("ca certificate: its key id is the present root's: make another")
    if new.not_valid_before_utc > now:
        raise InvalidArgument("ca certificate: it is not valid yet")
    if new.not_valid_after_utc < now + SUCCESSOR_VALIDITY_MIN:
        raise InvalidArgument("ca certificate: it must be valid for at least one more year")


def check_root(root_pem: bytes) -> None:
    """Refuse what is not one self-signed certificate of an authority. Raises InvalidArgument."""
    if root_pem.count(b"-----BEGIN CERTIFICATE-----") != 1:
        raise InvalidArgument(
            "ca certificate: must be exactly one PEM certificate, the root itself"
        )
    try:
        trust = TrustBundle(root_pem)
    except InvalidArgument as error:
        raise InvalidArgument(f"ca certificate: {error.message}") from error
    certificate = load_certificate(root_pem)
    if not trust.issued(certificate):
        raise InvalidArgument("ca certificate: it must be a root, signed with its own key")
    if not _may_sign(certificate):
        raise InvalidArgument("ca certificate: its key usage must allow to sign certificates")


def same_root(one_pem: bytes, other_pem: bytes) -> bool:
    """Whether both are the same certificate, however they are written."""
    return load_certificate(one_pem) == load_certificate(other_pem)


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except x509.ExtensionNotFound:
        return True
