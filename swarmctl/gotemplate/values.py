"""How Go sees and prints JSON-like values: truth, formatting, comparison.

`Record` is an object with a fixed set of fields, some of which may be absent; `OpenMap` has the
user's keys. Asking a Record for a field it cannot have is an error, anything else that is absent
is MISSING: false, empty, printed as Go prints it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal.docker.values import OpenMap
from shoal.errors import InvalidArgument


class Missing:
    """A value that is not there."""

    def __bool__(self) -> bool:
        return False


MISSING = Missing()


def field(value: Any, name: str, path: str) -> Any:
    """A field of a value. Raises InvalidArgument for one that does not exist; `path` names it."""
    if value is MISSING or value is None:
        return MISSING
    if isinstance(value, Mapping):
        if name in value:
            return value[name]
        if isinstance(value, OpenMap) or name in getattr(value, "absent", ()):
            return MISSING
        known = ", ".join(sorted({*value, *getattr(value, "absent", ())}))
        raise InvalidArgument(f"--format: {path}: there is no field {name}: there are {known}")
    raise InvalidArgument(f"--format: {path}: {_type_name(value)} has no fields")


def truth(value: Any) -> bool:
    """Go's truth: everything but zero, empty, false and nil."""
    return bool(value)


def text(value: Any) -> str:
    """A value as Go's %v prints it."""
    if value is MISSING or value is None:
        return "<no value>"
    return _nested(value)


def _nested(value: Any) -> str:
    if value is MISSING or value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, Mapping):
        pairs = " ".join(f"{key}:{_nested(item)}" for key, item in sorted(value.items()))
        return f"map[{pairs}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(_nested, value))}]"
    return str(value)


def _float(value: float) -> str:
    """Go's %v of a float64: shortest digits, an exponent from 1e21 and below 1e-4."""
    if value == int(value) and abs(value) < 1e21:
        return str(int(value))
    if 1e-4 <= abs(value) < 1e21:
        return repr(value)
    mantissa, _, exponent = f"{value!r}".partition("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent):+03d}"


def _type_name(value: Any) -> str:
    if isinstance(value, bool):
        return "a truth value"
    if isinstance(value, str):
        return "a string"
    return "a number" if isinstance(value, int | float) else "a list"
