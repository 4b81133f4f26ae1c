"""The words of CFSSL's signing endpoint: requests out, answers in. Pure.

A request names subject and hosts itself, so that nothing of a node's own request is taken over but
its key. What an answer holds is for `shoal.security.issued` to judge.
"""

from __future__ import annotations

from urllib.parse import urlsplit, urlunsplit

import msgspec
from cryptography import x509
from cryptography.x509.oid import NameOID

from shoal.errors import FailedPrecondition
from shoal.security.roles import PeerIdentity
from shoal.security.trust import load_certificate

CA_PROFILE = "CA"
"""The signing profile that a new root is certified with by the one it replaces (Swarm's name)."""
_CA_CONSTRAINTS = "2.5.29.19"
_NAMES = {
    NameOID.COUNTRY_NAME: "C",
    NameOID.STATE_OR_PROVINCE_NAME: "ST",
    NameOID.LOCALITY_NAME: "L",
    NameOID.ORGANIZATION_NAME: "O",
    NameOID.ORGANIZATIONAL_UNIT_NAME: "OU",
}
REASON_LENGTH_MAX = 200
DEFAULT_PATH = "/api/v1/cfssl/sign"
URLS_MAX = 4
"""More would outlast the patience of the node that waits for its certificate."""


class _Message(msgspec.Struct):
    message: str = ""


class _Result(msgspec.Struct):
    certificate: str = ""


class _Answer(msgspec.Struct):
    success: bool = False
    result: _Result | None = None
    errors: list[_Message] | None = None


def sign_url(url: str) -> str:
    """Where to send requests: the URL as it is, or the usual endpoint of a mere HOST:PORT."""
    parts = urlsplit(url)
    return url if parts.path.strip("/") else urlunsplit(parts._replace(path=DEFAULT_PATH))


def node_request(csr_pem: bytes, identity: PeerIdentity) -> bytes:
    """Asks for a node's certificate: CN, OU, O and the two names that `RootCA.sign` gives."""
    return msgspec.json.encode(
        {
            "certificate_request": csr_pem.decode(),
            "hosts": [identity.node_id, identity.role.unit],
            "subject": {
                "CN": identity.node_id,
                "names": [{"OU": identity.role.unit, "O": identity.cluster_id}],
            },
        }
    )


def authority_request(csr_pem: bytes, successor_pem: bytes) -> bytes:
    """Asks the root that is to be replaced to certify the name and key of the new one."""
    subject = load_certificate(successor_pem).subject
    names = {
        _NAMES[attribute.oid]: str(attribute.value)
        for attribute in subject
        if attribute.oid in _NAMES
    }
    common = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    constraints = x509.BasicConstraints(ca=True, path_length=0).public_bytes()
    return msgspec.json.encode(
        {
            "certificate_request": csr_pem.decode(),
            "profile": CA_PROFILE,
            "subject": {
                "CN": str(common[0].value) if common else "",
                "names": [names] if names else [],
            },
            "extensions": [{"id": _CA_CONSTRAINTS, "critical": True, "value": constraints.hex()}],
        }
    )


def certificate_in(body: bytes) -> bytes:
    """The certificate of an answer, PEM. Raises FailedPrecondition with the authority's reason."""
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except msgspec.MsgspecError as error:
        raise FailedPrecondition(f"its answer is not CFSSL's: {error}") from error
    if not answer.success or answer.result is None:
        reasons = "; ".join(one.message for one in answer.errors or ()) or "no reason was given"
        raise FailedPrecondition(f"it refused to sign: {shown(reasons)}")
    return answer.result.certificate.encode()


def shown(text: str) -> str:
    """A foreign text for a message of ours: one line, bounded, printable."""
    line = "".join(one if one.isprintable() else " " for one in text)
    return line if len(line) <= REASON_LENGTH_MAX else f"{line[:REASON_LENGTH_MAX]}..."
