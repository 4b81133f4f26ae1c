"""Credentials as services carry them: what `service create --with-registry-auth` sends. Pure.

A text is base64, of either alphabet, of one JSON object in Docker's spelling.
"""

from __future__ import annotations

import base64
import binascii

import msgspec

from shoal.errors import InvalidArgument
from worker.images.registry.api import Credentials

TEXT_MAX = 64 << 10


class _Auth(msgspec.Struct):
    username: str = ""
    password: str = ""
    auth: str = ""
    identitytoken: str = ""
    registrytoken: str = ""
    serveraddress: str = ""


def read_auth(text: str) -> Credentials:
    """Who pulls; nobody when `text` is empty. Raises: InvalidArgument."""
    if not text:
        return Credentials()
    if len(text) > TEXT_MAX:
        raise InvalidArgument(f"registry credentials are longer than {TEXT_MAX} bytes")
    try:
        found = msgspec.json.decode(_decoded(text), type=_Auth)
        username, password = found.username, found.password
        if found.auth and not username:
            username, _, password = _decoded(found.auth).decode().partition(":")
    except (ValueError, binascii.Error, msgspec.MsgspecError):
        raise InvalidArgument("registry credentials must be base64 of a JSON object") from None
    return Credentials(
        username=username,
        password=password,
        identity_token=found.identitytoken,
        registry_token=found.registrytoken,
        server_address=found.serveraddress,
    )


def _decoded(text: str) -> bytes:
    plain = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
