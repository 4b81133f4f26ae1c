"""Durations, sizes, CPU counts and whole numbers as people write them, and back.

Durations and byte sizes follow the docker CLI: Go's duration syntax, and binary multiples for
memory. Everything is exact integer arithmetic, so what is printed reads back as the same number.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from shoal.clock import NS_PER_MS, NS_PER_S
from shoal.errors import InvalidArgument

NS_BY_UNIT = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,
    "ms": NS_PER_MS,
    "s": NS_PER_S,
    "m": 60 * NS_PER_S,
    "h": 3600 * NS_PER_S,
}
INT64_MAX = 2**63 - 1

_DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b)?", re.IGNORECASE)
_BINARY_PREFIXES = "kmgtp"
_DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def parse_duration(text: str) -> int:
    """Nanoseconds of a duration such as `1h30m`, `5s`, `1.5s`, `100ms` or `0`."""
    body = text.strip()
    if body == "0":
        return 0
    total = Decimal(0)
    position = 0
    for match in _DURATION_PART.finditer(body):
        if match.start() != position:
            break
        total += Decimal(match[1]) * NS_BY_UNIT[match[2]]
        position = match.end()
    if not body or position != len(body):
        raise InvalidArgument(
            f"{text!r} is not a duration: write a number and a unit (ns, us, ms, s, m, h), "
            "as in 10s or 1h30m"
        )
    if total > INT64_MAX:
        raise InvalidArgument(f"{text!r} is too long: the longest duration is 2562047h")
    return int(total)


def format_duration(duration_ns: int) -> str:
    """A duration as Go prints it: `1m30s`, `2160h0m0s`, `1.5s`, `250ms`, `0s`."""
    if duration_ns < 0:
        return f"-{format_duration(-duration_ns)}"
    if duration_ns < NS_PER_S:
        for unit in ("ms", "us"):
            if duration_ns >= NS_BY_UNIT[unit]:
                return f"{_plain(Decimal(duration_ns) / NS_BY_UNIT[unit])}{unit}"
        return f"{duration_ns}ns" if duration_ns else "0s"
    minutes, rest_ns = divmod(duration_ns, NS_BY_UNIT["m"])
    seconds = f"{_plain(Decimal(rest_ns) / NS_PER_S)}s"
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{seconds}"
    return f"{minutes}m{seconds}" if minutes else seconds


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `512m`, `1.5GiB`, `64MB` or `1048576`; multiples of 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidArgument(
            f"{text!r} is not a size: write a number and a unit (b, k, m, g, t), as in 512m"
        )
    prefix = match[2].lower()
    factor = 1024 ** (_BINARY_PREFIXES.index(prefix) + 1) if prefix else 1
    size = int(Decimal(match[1]) * factor)
    if size > INT64_MAX:
        raise InvalidArgument(f"{text!r} is too large: the largest size is {INT64_MAX} bytes")
    return size


def format_binary_size(size_bytes: int) -> str:
    """A size in multiples of 1024, up to four digits: `64MiB`, `1.5GiB`."""
    return _scaled(size_bytes, 1024, _BINARY_UNITS, digits=4)


def format_decimal_size(size_bytes: int) -> str:
    """A size in multiples of 1000, three digits, as docker lists images: `1.99MB`."""
    return _scaled(size_bytes, 1000, _DECIMAL_UNITS, digits=3)


def parse_cpus(text: str) -> int:
    """Billionths of a core of a count such as `0.5` or `2`."""
    try:
        cpus = Decimal(text.strip())
    except InvalidOperation:
        cpus = Decimal("NaN")
    if not cpus.is_finite() or cpus < 0 or cpus > 1_000_000:
        raise InvalidArgument(f"{text!r} is not a number of CPUs: write 2 or 0.5")
    nano_cpus = cpus * 1_000_000_000
    if nano_cpus != nano_cpus.to_integral_value():
        raise InvalidArgument(f"{text!r} is too precise: CPUs have at most nine decimals")
    return int(nano_cpus)


def format_cpus(nano_cpus: int) -> str:
    """A CPU count without needless zeros: `0.5`, `2`."""
    return _plain(Decimal(nano_cpus) / 1_000_000_000)


def parse_count(text: str, *, name: str, maximum: int = INT64_MAX) -> int:
    """A whole number from 0 to `maximum`; `name` is used in the message."""
    if not (text.isascii() and text.isdigit()) or int(text) > maximum:
        raise InvalidArgument(f"{name} {text!r} is not a whole number from 0 to {maximum}")
    return int(text)


def _scaled(size: int, base: int, units: tuple[str, ...], *, digits: int) -> str:
    value = float(size)
    position = 0
    while value >= base and position < len(units) - 1:
        value /= base
        position += 1
    return f"{value:.{digits}g}{units[position]}"


def _plain(value: Decimal) -> str:
    """The number without an exponent and without trailing zeros."""
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
