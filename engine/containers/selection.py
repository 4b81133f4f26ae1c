"""Which containers a list or a prune wants. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import NamedTuple

from engine.containers.container import Container
from engine.containers.networking import parse_port
from engine.http.filters import Filters
from shoal.errors import InvalidArgument
from worker.health.core import HEALTHY, STARTING, UNHEALTHY

ACCEPTED = frozenset((
    "ancestor", "before", "exited", "expose", "health", "id", "is-task", "isolation", "label",
    "name", "network", "publish", "since", "status", "volume",
))  # fmt: skip
_STATES = frozenset(("created", "running", "paused", "restarting", "removing", "exited", "dead"))
_HEALTHS = frozenset(("none", STARTING, HEALTHY, UNHEALTHY))


class Wish(NamedTuple):
    """What a list is to hold. limit: 0 or less: no limit."""

    filters: Filters
    all: bool = False
    limit: int = 0


class Known(NamedTuple):
    """How names in filters are understood."""

    find: Callable[[str], Container]
    images: Callable[[str], frozenset[str]]
    """Ids of an image and of those built on it; empty when there is none."""
    network: Callable[[str], str]
    """Name of a network by name or id."""


def select(containers: Iterable[Container], wish: Wish, known: Known) -> list[Container]:
    """Those wanted, of containers given newest first. Raises: InvalidArgument, NotFound."""
    filters = wish.filters
    _check_values(filters, "status", _STATES)
    _check_values(filters, "health", _HEALTHS)
    shows_all = wish.all or wish.limit > 0 or "status" in filters
    bounds = _bounds(filters, known)
    exit_codes = {_number(filters, code) for code in filters.values("exited")}
    images = [known.images(ref) for ref in filters.values("ancestor")]
    networks = {known.network(ref) for ref in filters.values("network")}
    found = []
    for one in containers:
        if not (shows_all or one.running) or not bounds(one):
            continue
        if exit_codes and not (_has_ended(one) and one.exit_code in exit_codes):
            continue
        if images and not any(one.record.image_id in ids for ids in images):
            continue
        if networks and networks.isdisjoint(one.record.networks):
            continue
        if _matches(one, filters):
            found.append(one)
        if len(found) == wish.limit > 0:
            break
    return found


def _matches(one: Container, filters: Filters) -> bool:
    record = one.record
    health = "none" if one.health is None else one.health.status
    volumes = {text for point in record.mounts for text in (point.name, point.target) if text}
    return (
        _matches_pattern(filters, "name", record.name)
        and filters.matches_prefix("id", record.id)
        and filters.matches_labels(record.config.labels or {})
        and filters.matches("status", one.state)
        and filters.matches("health", health)
        and filters.matches("isolation", record.host.isolation)
        and filters.matches_any("volume", volumes)
        and _matches_ports(filters, "publish", _published(one))
        and _matches_ports(filters, "expose", _exposed(one))
        and ("is-task" not in filters or filters.flag("is-task", default=False) == one.task)
    )


def _matches_pattern(filters: Filters, name: str, value: str) -> bool:
    """Wishes are regular expressions, or else parts. Source: moby filters, Match."""
    for wish in filters.values(name):
        try:
            if re.search(wish.removeprefix("/"), value):
                return True
        except re.error:
            continue
    return filters.matches_part(name, value)


def _matches_ports(filters: Filters, name: str, ports: set[tuple[int, str]]) -> bool:
    wishes: set[tuple[int, str]] = set()
    for text in filters.values(name):
        span, _, protocol = text.partition("/")
        first, _, last = span.partition("-")
        numbers = [parse_port(f"{port}/{protocol or 'tcp'}")[0] for port in (first, last or first)]
        wishes |= {(port, protocol or "tcp") for port in range(numbers[0], numbers[1] + 1)}
    return not wishes or not wishes.isdisjoint(ports)


def _published(one: Container) -> set[tuple[int, str]]:
    sandbox = one.record.sandbox
    return {(port.host_port, port.protocol) for port in (sandbox.ports if sandbox else ())}


def _exposed(one: Container) -> set[tuple[int, str]]:
    return {parse_port(port) for port in one.record.config.exposed_ports or ()}


def _bounds(filters: Filters, known: Known) -> Callable[[Container], bool]:
    """Whether a container was made before and since those that are named. Raises: NotFound."""
    before = [known.find(ref).record.created_at_ns for ref in filters.values("before")]
    since = [known.find(ref).record.created_at_ns for ref in filters.values("since")]

    def within(one: Container) -> bool:
        made_ns = one.record.created_at_ns
        return all(made_ns < bound for bound in before) and all(made_ns > bound for bound in since)

    return within


def _has_ended(one: Container) -> bool:
    return not one.running and one.has_run


def _number(filters: Filters, text: str) -> int:
    if not re.fullmatch("-?[0-9]{1,9}", text):
        raise InvalidArgument(f"invalid filter 'exited={list(filters.values('exited'))}'")
    return int(text)


def _check_values(filters: Filters, name: str, known: frozenset[str]) -> None:
    for value in filters.values(name):
        if value not in known:
            raise InvalidArgument(f"invalid filter '{name}={value}'")


def until_ns(filters: Filters, now_ns: int) -> int | None:
    """The moment `until` names: Unix seconds, RFC 3339, or a Go duration ago; None without one.

    Raises: InvalidArgument.
    """
    wishes = filters.values("until")
    if len(wishes) > 1:
        raise InvalidArgument("more than one until filter specified")
    return moment_ns(wishes[0], now_ns) if wishes else None


def moment_ns(text: str, now_ns: int) -> int:
    """A moment as filters give it. Raises: InvalidArgument."""
    ago = _duration_ns(text)
    if ago is not None:
        return now_ns - ago
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", text):
        whole, _, rest = text.partition(".")
        return int(whole) * 10**9 + int(rest.ljust(9, "0"))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidArgument(f"until: {text!r} must be a time or a duration like 10m") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * 10**9 + moment.microsecond * 1000


def _duration_ns(text: str) -> int | None:
    if not re.fullmatch(r"([0-9]+(\.[0-9]+)?(h|ms|m|s|us|µs|ns))+", text):
        return None
    units = {"h": 3600 * 10**9, "m": 60 * 10**9, "s": 10**9, "ms": 10**6, "us": 1000, "µs": 1000,
             "ns": 1}  # fmt: skip
    parts = re.findall(r"([0-9]+(?:\.[0-9]+)?)(h|ms|m|s|us|µs|ns)", text)
    return sum(int(float(number) * units[unit]) for number, unit in parts)
