"""The joiner identity is part of the wire protocol: the same everywhere, for ever."""

from __future__ import annotations

import hashlib

from cryptography import x509

from shoal.security.joiner import joiner_identity
from shoal.security.keys import load_key
from shoal.security.trust import load_certificate

FINGERPRINT = "7629bbddfc1a8a3e6c74424f5a7a094bf4249d2feda8791ad6a92cfc371b7275"


def test_its_certificate_never_changes():
    pem = joiner_identity().certificate_pem
    assert hashlib.sha256(pem).hexdigest() == FINGERPRINT


def test_it_is_derived_anew_with_the_same_result():
    before = joiner_identity()
    joiner_identity.cache_clear()
    assert joiner_identity() == before


def test_its_key_belongs_to_it():
    joiner = joiner_identity()
    certificate = load_certificate(joiner.certificate_pem)
    assert certificate.public_key() == load_key(joiner.key_pem).public_key()


def test_it_is_no_authority():
    extensions = load_certificate(joiner_identity().certificate_pem).extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
