"""Where a registry is: from what people write to base URLs, in the order they are tried. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from shoal.errors import InvalidArgument
from worker.images.registry.api import RegistrySettings

DOCKER_HUB = "docker.io"
_HUB_NAMES = frozenset(("", DOCKER_HUB, "index.docker.io", "registry-1.docker.io"))
_HUB_URL = "https://registry-1.docker.io"


def check_registries(insecure: Sequence[str], mirrors: Sequence[str]) -> RegistrySettings:
    """The settings with what was wished besides loopback. Raises: InvalidArgument."""
    for one in insecure:
        if "/" in one:
            _subnet(one)
        elif not one or "@" in one or any(letter.isspace() for letter in one):
            raise InvalidArgument(f"--insecure-registry: {one!r} must be HOST[:PORT] or a subnet")
    for url in mirrors:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.netloc or parts.query:
            raise InvalidArgument(
                f"--registry-mirror: {url!r} must be http(s)://HOST[:PORT][/PATH]"
            )
        if parts.username is not None:
            raise InvalidArgument("--registry-mirror: mirrors are asked without a name or password")
    default = RegistrySettings()
    return RegistrySettings(insecure=(*default.insecure, *insecure), mirrors=tuple(mirrors))


def _subnet(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise InvalidArgument(f"--insecure-registry: {text!r}: {error}") from None


def registry_name(server_address: str) -> str:
    """`https://index.docker.io/v1/` → `docker.io`, `r:5000` → `r:5000`. Raises: InvalidArgument."""
    text = server_address.strip()
    host = urlsplit(text).netloc if "://" in text else text.partition("/")[0]
    if "@" in host or any(letter.isspace() for letter in host):
        raise InvalidArgument(f"registry: {server_address[:200]!r} must be HOST[:PORT]")
    return DOCKER_HUB if host.lower() in _HUB_NAMES else host


def base_urls(name: str, settings: RegistrySettings) -> tuple[str, ...]:
    """URLs without path: TLS first; plain HTTP after it where that is allowed."""
    if name == DOCKER_HUB:
        return (_HUB_URL,)
    secure = f"https://{name}"
    return (secure, f"http://{name}") if is_insecure(name, settings) else (secure,)


def is_insecure(name: str, settings: RegistrySettings) -> bool:
    """Whether a registry may be spoken to without a trusted certificate, or without TLS."""
    host = urlsplit(f"//{name}").hostname or ""
    if name in settings.insecure or host in settings.insecure:
        return True
    address = _address("127.0.0.1" if host == "localhost" else host)
    if address is None:
        return False
    subnets = (ipaddress.ip_network(one) for one in settings.insecure if "/" in one)
    return any(address in subnet for subnet in subnets)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
