"""Lists of `key=value` as one flag value, separated by commas and quoted as in CSV."""

from __future__ import annotations

import csv

from shoal.errors import InvalidArgument


def split_fields(text: str) -> list[tuple[str, str | None]]:
    """The (key, value) pairs of `a=1,b,"c=x,y"`; keys in lower case, None without `=`."""
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise InvalidArgument(f"{text!r}: {error}: check the quotes") from error
    fields = rows[0] if rows else []
    if not fields:
        raise InvalidArgument("the value is empty")
    return [_pair(field) for field in fields]


def parse_bool(value: str | None, *, key: str) -> bool:
    """A truth value as Go's flag parser accepts it; a key alone means true."""
    if value is None:
        return True
    if value.lower() in ("1", "t", "true"):
        return True
    if value.lower() in ("0", "f", "false"):
        return False
    raise InvalidArgument(f"{key}={value!r} must be true or false")


def required(value: str | None, *, key: str) -> str:
    """The value of a key that needs one."""
    if not value:
        raise InvalidArgument(f"{key} needs a value, as in {key}=...")
    return value


def _pair(field: str) -> tuple[str, str | None]:
    key, equals, value = field.partition("=")
    return key.strip().lower(), value if equals else None
