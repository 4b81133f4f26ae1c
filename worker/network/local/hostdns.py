"""The node's resolv.conf, and what a container gets of it. Pure but for `read`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

_PATH: Final = Path("/etc/resolv.conf")
_FALLBACK: Final = ("8.8.8.8", "8.8.4.4")
"""Docker's, for a node whose only servers are on its own loopback."""


class HostDns(msgspec.Struct, frozen=True):
    """Servers, search domains and options of the node."""

    servers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def read() -> HostDns:
    """As it is now; nothing when it cannot be read."""
    try:
        return parse(_PATH.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return HostDns()


def parse(content: str) -> HostDns:
    """Source: resolv.conf(5): the last `search` or `domain` counts, options add up."""
    servers: list[str] = []
    search: tuple[str, ...] = ()
    options: list[str] = []
    for line in content.splitlines():
        words = line.split("#")[0].split(";")[0].split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and _is_address(words[1]):
            servers.append(words[1])
        elif words[0] in {"search", "domain"}:
            search = tuple(words[1:])
        elif words[0] == "options":
            options += words[1:]
    return HostDns(tuple(dict.fromkeys(servers)), search, tuple(options))


def seen_from_containers(servers: Iterable[str]) -> tuple[str, ...]:
    """Servers a container reaches by itself: not those on the node's loopback."""
    found = tuple(one for one in servers if not _address(one).is_loopback)
    return found or _FALLBACK


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.ip_address(text.partition("%")[0])


def _is_address(text: str) -> bool:
    try:
        _address(text)
    except ValueError:
        return False
    return True
