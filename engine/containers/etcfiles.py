"""Changes to a running container's /etc/hosts and /etc/resolv.conf, as its networks change. Pure.

Only what came from the networks is touched: what the container has written itself stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.containers.config import NDOTS


def hosts(content: str, gone: Iterable[str], come: Iterable[tuple[str, str]]) -> str:
    """Without the lines of addresses that are gone, with the lines that come."""
    without = set(gone)
    kept = [line for line in content.splitlines() if not without.intersection(line.split()[:1])]
    lines = [*kept, *(f"{address}\t{name}" for address, name in come)]
    return "\n".join(lines) + "\n"


def resolver(content: str, servers: Sequence[str], *, named: bool) -> str:
    """With these servers. named: names of one word are asked for as they are."""
    found: list[str] = []
    options: list[str] = []
    for line in content.splitlines():
        words = line.split()
        if words[:1] == ["options"]:
            options += [one for one in words[1:] if one != NDOTS]
        elif words[:1] != ["nameserver"]:
            found.append(line)
    found += [f"nameserver {server}" for server in servers]
    if named and not any(one.startswith("ndots:") for one in options):
        options.append(NDOTS)
    if options:
        found.append(f"options {' '.join(options)}")
    return "\n".join(found) + "\n"
