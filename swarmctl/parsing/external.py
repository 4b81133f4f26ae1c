"""External certificate authorities as docker writes them: protocol=cfssl,url=URL[,cacert=FILE]."""

from __future__ import annotations

from pathlib import Path

from shoal.errors import InvalidArgument
from shoal.model.types import ExternalCa
from swarmctl.parsing.fields import required, split_fields

FILE_BYTES_MAX = 64 * 1024


def parse_external_ca(text: str) -> ExternalCa:
    """Reads the certificate's file. Raises InvalidArgument."""
    protocol, url, certificate = "", "", b""
    for key, value in split_fields(text):
        match key:
            case "protocol":
                protocol = required(value, key=key).lower()
                if protocol != "cfssl":
                    raise InvalidArgument(
                        f"unrecognized external CA protocol {protocol}: use cfssl"
                    )
            case "url":
                url = required(value, key=key)
            case "cacert":
                certificate = read_pem(Path(required(value, key=key)))
            case _:
                raise InvalidArgument(f"{key}: unknown, use protocol, url and cacert")
    if not protocol:
        raise InvalidArgument("the external-ca option needs a protocol= parameter")
    if not url:
        raise InvalidArgument("the external-ca option needs a url= parameter")
    return ExternalCa(protocol=protocol, url=url, ca_certificate=certificate)


def read_pem(path: Path) -> bytes:
    """A file with a certificate or a key. Raises InvalidArgument."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror}") from error
    if not content or len(content) > FILE_BYTES_MAX:
        raise InvalidArgument(f"{path}: must hold 1 to {FILE_BYTES_MAX} bytes of PEM")
    return content
