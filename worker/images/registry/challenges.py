"""What a registry demands before it answers: `WWW-Authenticate`, read and answered. Pure.

A registry wants a name and password with every call (`Basic`), or a token from another place
(`Bearer`). One challenge may ask for several scopes, separated by spaces; they are asked for one by
one. Refuses realms that are no HTTP URLs.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import urlencode, urlsplit

import msgspec

from shoal.errors import InvalidArgument
from worker.images.registry.api import Credentials

_PARAMETER = re.compile(r'([a-zA-Z_]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*,?\s*')
_HEADER_MAX = 8192


class Challenge(msgspec.Struct, frozen=True, kw_only=True):
    """scheme: `basic` or `bearer`, in lower case."""

    scheme: str
    realm: str = ""
    service: str = ""
    scopes: tuple[str, ...] = ()


def parse_challenge(header: str) -> Challenge | None:
    """The first challenge we can answer; None when there is none."""
    for scheme in ("Bearer", "Basic"):
        found = re.search(rf"(?:^|,\s*){scheme}(?:\s+|$)", header[:_HEADER_MAX], re.IGNORECASE)
        if found is not None:
            return _challenge(scheme.lower(), header[found.end() : _HEADER_MAX])
    return None


def _challenge(scheme: str, text: str) -> Challenge:
    parameters: dict[str, str] = {}
    place = 0
    while found := _PARAMETER.match(text, place):
        name, quoted, plain = found.groups()
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
        parameters.setdefault(name.lower(), value)
        place = found.end()
    return Challenge(
        scheme=scheme,
        realm=parameters.get("realm", ""),
        service=parameters.get("service", ""),
        scopes=tuple(parameters.get("scope", "").split()),
    )


def basic(credentials: Credentials) -> str:
    """The Authorization header of a name and password."""
    text = f"{credentials.username}:{credentials.password}".encode()
    return "Basic " + base64.b64encode(text).decode()


def token_url(challenge: Challenge, account: str, scopes: tuple[str, ...] = ()) -> str:
    """Where to ask for a token. scopes: instead of the challenge's. Raises: InvalidArgument."""
    _check_realm(challenge.realm)
    pairs = [("service", challenge.service)] if challenge.service else []
    pairs += [("scope", scope) for scope in scopes or challenge.scopes]
    if account:
        pairs.append(("account", account))
    separator = "&" if urlsplit(challenge.realm).query else "?"
    return challenge.realm + (separator + urlencode(pairs) if pairs else "")


def refresh_form(
    challenge: Challenge, credentials: Credentials, client: str
) -> tuple[tuple[str, str], ...]:
    """The form that trades an identity token for an access token (OAuth2). Raises as token_url."""
    _check_realm(challenge.realm)
    return (
        ("grant_type", "refresh_token"),
        ("refresh_token", credentials.identity_token),
        ("service", challenge.service),
        ("client_id", client),
        ("scope", " ".join(challenge.scopes)),
    )


def _check_realm(realm: str) -> None:
    parts = urlsplit(realm)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise InvalidArgument(f"registry: the realm {realm[:200]!r} of its challenge is no URL")
