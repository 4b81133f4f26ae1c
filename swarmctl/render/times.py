"""Points in time and distances, as docker prints them."""

from __future__ import annotations

import datetime as dt

from shoal.clock import NS_PER_S
from shoal.errors import InvalidArgument
from swarmctl.parsing.units import parse_duration


def padded_timestamp(time_ns: int) -> str:
    """RFC 3339 with all nine digits, so that columns of log lines are equally wide."""
    seconds, fraction_ns = divmod(time_ns, NS_PER_S)
    whole = dt.datetime.fromtimestamp(seconds, tz=dt.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{fraction_ns:09d}Z"


def distance(duration_ns: int) -> str:
    """A length of time in words, as docker's lists have it: `5 minutes`, `About an hour`."""
    seconds = max(duration_ns, 0) // NS_PER_S
    minutes, hours = seconds // 60, round(seconds / 3600)
    result = f"{hours // (24 * 365)} years"
    if seconds < 1:
        result = "Less than a second"
    elif seconds == 1:
        result = "1 second"
    elif seconds < 60:
        result = f"{seconds} seconds"
    elif minutes == 1:
        result = "About a minute"
    elif minutes < 60:
        result = f"{minutes} minutes"
    elif hours == 1:
        result = "About an hour"
    elif hours < 48:
        result = f"{hours} hours"
    elif hours < 24 * 7 * 2:
        result = f"{hours // 24} days"
    elif hours < 24 * 30 * 2:
        result = f"{hours // (24 * 7)} weeks"
    elif hours < 24 * 365 * 2:
        result = f"{hours // (24 * 30)} months"
    return result


def parse_since(text: str, now_ns: int) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time, Unix seconds, or a duration before now."""
    if text.replace(".", "", 1).isdigit():
        seconds, _, fraction = text.partition(".")
        return int(seconds or 0) * NS_PER_S + int((fraction + "0" * 9)[:9])
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        try:
            return max(now_ns - parse_duration(text), 1)
        except InvalidArgument:
            raise InvalidArgument(
                f"{text!r} is not a time: write 2026-01-31T12:00:00Z, Unix seconds, "
                "or a duration such as 10m"
            ) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
    return int((aware - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)).total_seconds() * NS_PER_S)
