"""The smaller grammars: key=value pairs, environment, hosts, ulimits, placement, resources."""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Iterable, Mapping

from shoal.errors import InvalidArgument
from shoal.model.generic import check_kind
from shoal.model.log_drivers import TASK_OPTIONS
from shoal.model.types import GenericResource, PlacementPreference, Ulimit
from swarmctl.parsing.units import parse_bytes, parse_count

ULIMIT_NAMES = (
    "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc",
    "rss", "rtprio", "rttime", "sigpending", "stack",
)  # fmt: skip
LOG_OPTIONS = frozenset().union(*TASK_OPTIONS.values())
LOG_SIZE_BYTES_MIN = 4096
NO_LIMIT = -1

_CONSTRAINT = re.compile(
    r"\s*[^\s=!~<>]+\s*(?:(?:==|!=|~=|<=?|>=?)\s*\S.*|\s(?:in|notin)\s*\(.+\)\s*|\sexists\s*)"
)
_LOG_SIZE = re.compile(r"\d+(?:[kmg](?:i?b)?|b)?", re.IGNORECASE)


def parse_pair(text: str) -> tuple[str, str]:
    """Key and value of `key=value`; without `=` the value is empty, as for docker labels."""
    key, _, value = text.partition("=")
    if not key:
        raise InvalidArgument(f"{text!r}: the key is empty: write key=value")
    return key, value


def parse_environment(text: str, environ: Mapping[str, str]) -> str | None:
    """`KEY=value` as it is; `KEY` alone with the caller's value, None when the caller has none."""
    key, equals, _ = text.partition("=")
    if not key or "\0" in text:
        raise InvalidArgument(f"{text!r}: write KEY=value")
    if equals:
        return text
    return f"{key}={environ[key]}" if key in environ else None


def parse_environment_file(
    lines: Iterable[str], environ: Mapping[str, str], *, name: str
) -> tuple[str, ...]:
    """The variables of an env-file: one a line, blank lines and `#` comments skipped."""
    result: list[str] = []
    for number, line in enumerate(lines, start=1):
        text = line.rstrip("\r\n").lstrip()
        if not text or text.startswith("#"):
            continue
        key = text.partition("=")[0]
        if not key or any(character.isspace() for character in key):
            raise InvalidArgument(
                f"--env-file {name}, line {number}: {key!r} is not a variable name: write KEY=value"
            )
        variable = parse_environment(text, environ)
        if variable is not None:
            result.append(variable)
    return tuple(result)


def parse_host(text: str) -> str:
    """`name:address` in the form specs keep: `address name`."""
    name, colon, address = text.partition(":")
    try:
        ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        colon = ""
    if not name or not colon:
        raise InvalidArgument(f"{text!r}: write name:address, as in db:192.0.2.7")
    return f"{address.strip('[]')} {name}"


def parse_ulimit(text: str) -> Ulimit:
    """`name=soft[:hard]`; -1 means no limit."""
    name, _, limits = text.partition("=")
    if name not in ULIMIT_NAMES:
        raise InvalidArgument(
            f"{text!r}: unknown limit {name!r}: the limits are {', '.join(ULIMIT_NAMES)}"
        )
    soft_text, _, hard_text = limits.partition(":")
    soft = _limit(soft_text, text)
    hard = _limit(hard_text, text) if hard_text else soft
    if hard != -1 and (soft == -1 or soft > hard):
        raise InvalidArgument(f"{text!r}: the soft limit is above the hard limit")
    return Ulimit(name=name, soft=soft, hard=hard)


def parse_preference(text: str) -> PlacementPreference:
    """`spread=node.labels.X`, `spread=engine.labels.X`, `prefer=CONSTRAINT`, `avoid=CONSTRAINT`."""
    strategy, _, wish = text.partition("=")
    if strategy == "spread" and wish:
        return PlacementPreference(spread_descriptor=wish)
    if strategy == "prefer":
        return PlacementPreference(prefer=parse_constraint(wish))
    if strategy == "avoid":
        return PlacementPreference(avoid=parse_constraint(wish))
    raise InvalidArgument(
        f"{text!r}: write spread=LABEL, prefer=CONSTRAINT or avoid=CONSTRAINT, as in "
        "spread=node.labels.rack"
    )


def preference_text(preference: PlacementPreference) -> str:
    """A preference as it is written."""
    if preference.prefer:
        return f"prefer={preference.prefer}"
    if preference.avoid:
        return f"avoid={preference.avoid}"
    return f"spread={preference.spread_descriptor}"


def parse_generic_resource(text: str) -> GenericResource:
    """`KIND=COUNT`: services ask for a number of pieces, never for named ones."""
    kind, _, count = text.partition("=")
    check_kind(kind)
    if not count.isdigit() or not int(count):
        raise InvalidArgument(f"{text!r}: write KIND=COUNT with a count of at least 1")
    return GenericResource(kind=kind, count=parse_count(count, name=f"the count of {kind}"))


def parse_budget(text: str) -> int:
    """A number of tasks; NO_LIMIT for `none`."""
    return NO_LIMIT if text == "none" else parse_count(text, name="the disruption budget")


def parse_log_option(text: str) -> tuple[str, str]:
    """An option some driver has; the values stay as they were written."""
    key, value = parse_pair(text)
    match key:
        case "max-size":
            if not _LOG_SIZE.fullmatch(value) or parse_bytes(value) < LOG_SIZE_BYTES_MIN:
                raise InvalidArgument(
                    f"max-size={value} must be a whole number and a unit (k, m, g), as in 10m, "
                    f"and at least {LOG_SIZE_BYTES_MIN} bytes"
                )
        case "max-file":
            if not value.isdigit() or int(value) < 1:
                raise InvalidArgument(f"max-file={value} must be 1 or more")
        case _ if key not in LOG_OPTIONS:
            raise InvalidArgument(
                f"{key}: not supported: the options are {', '.join(sorted(LOG_OPTIONS))}"
            )
        case _:
            pass  # the managers know which driver it is for
    return key, value


def parse_command(text: str) -> tuple[str, ...]:
    """A command line in shell quoting."""
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise InvalidArgument(f"{text!r}: {error}") from error


def parse_constraint(text: str) -> str:
    """A constraint, passed on as written; the manager knows keys and values."""
    if not _CONSTRAINT.fullmatch(text):
        raise InvalidArgument(
            f"{text!r}: write KEY==VALUE, !=, ~=, <, <=, > or >=, KEY in (VALUE, ...), "
            "KEY notin (VALUE, ...) or KEY exists, as in node.role==worker"
        )
    return text


def _limit(text: str, whole: str) -> int:
    if text == "-1":
        return -1
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"{whole!r}: write name=soft[:hard] with whole numbers")
    return int(text)
