"""Enum members and times as Docker's flags and JSON spell them."""

from __future__ import annotations

import datetime as dt
from enum import IntEnum

from shoal.clock import NS_PER_S


def spell(member: IntEnum) -> str:
    """An enum member as flags and JSON spell it: `ON_FAILURE` is `on-failure`."""
    return member.name.lower().replace("_", "-")


def timestamp(time_ns: int) -> str:
    """RFC 3339 with nanoseconds, UTC; zeros at the end are left out, as Go does."""
    seconds, fraction_ns = divmod(time_ns, NS_PER_S)
    whole = dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{fraction_ns:09d}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"
