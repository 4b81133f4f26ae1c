"""Registry credentials as they travel in headers. Pure."""

from __future__ import annotations

import base64
import binascii

import msgspec

from engine.http import bodies
from shoal.errors import InvalidArgument, SwarmError
from worker.images.registry.api import Credentials

HEADER_BYTES_MAX = 64 << 10


class AuthConfig(msgspec.Struct, frozen=True):
    """Docker's form of credentials: `/auth`, `X-Registry-Auth`, `X-Registry-Config`."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""

    def credentials(self) -> Credentials:
        """The same in our words. Raises: InvalidArgument."""
        username, password = self.username, self.password
        if self.auth and not username:
            text = _decoded("auth", self.auth).decode(errors="replace")
            username, separator, password = text.partition(":")
            if not separator:
                raise InvalidArgument("auth: must be base64 of name:password")
        return Credentials(
            username=username,
            password=password.rstrip("\0"),
            identity_token=self.identitytoken,
            registry_token=self.registrytoken,
            server_address=self.serveraddress,
        )


def one(header: str) -> Credentials:
    """`X-Registry-Auth`; empty: anonymous. Raises: InvalidArgument."""
    if not header:
        return Credentials()
    return _converted("X-Registry-Auth", header, AuthConfig).credentials()


def by_server(header: str) -> dict[str, Credentials]:
    """`X-Registry-Config`: credentials by registry, for builds. Raises: InvalidArgument."""
    if not header:
        return {}
    found = _converted("X-Registry-Config", header, dict[str, AuthConfig])
    return {server: config.credentials() for server, config in found.items()}


def _converted(name: str, header: str, kind: type[bodies.Kind]) -> bodies.Kind:
    try:
        return bodies.decode(_decoded(name, header), kind)
    except SwarmError as error:
        raise InvalidArgument(f"invalid {name} header: {error.message}") from None


def _decoded(name: str, text: str) -> bytes:
    """Base64, of either alphabet, padded or not."""
    if len(text) > HEADER_BYTES_MAX:
        raise InvalidArgument(f"{name}: longer than {HEADER_BYTES_MAX} bytes")
    plain = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument(f"{name}: is not base64") from None
