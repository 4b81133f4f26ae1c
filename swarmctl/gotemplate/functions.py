"""Functions of templates: Go's predefined ones and those docker adds.

Argument lists are checked by `call`; a wrong type or number of arguments is InvalidArgument.
"""

from __future__ import annotations

import inspect
import json as json_format
import re
from collections.abc import Callable, Mapping
from typing import Any

from shoal.errors import InvalidArgument
from swarmctl.gotemplate.values import MISSING, text, truth

WIDTH_MAX = 4096

_VERB = re.compile(r"%(?P<flags>[-+ 0#]*)(?P<width>\d*)(?:\.(?P<precision>\d*))?(?P<verb>.)", re.S)


def call(name: str, arguments: list[Any]) -> Any:
    """The value of a function. Raises InvalidArgument."""
    function = FUNCTIONS[name]
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        raise InvalidArgument(f"--format: {name} cannot take {len(arguments)} arguments") from None
    try:
        return function(*arguments)
    except (TypeError, AttributeError, ValueError, IndexError, KeyError) as error:
        raise InvalidArgument(f"--format: {name}: {error}") from error


def _len(value: Any) -> int:
    return 0 if value is MISSING or value is None else len(value)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key, MISSING)
        elif value is MISSING or value is None:
            raise ValueError("of nothing")
        elif isinstance(key, bool) or not isinstance(key, int):
            raise TypeError(f"{key!r} is not a position")
        elif not 0 <= key < len(value):
            raise IndexError(f"{key} is not within 0..{len(value) - 1}")
        else:
            value = value[key]
    return value


def _slice(value: Any, *bounds: int) -> Any:
    if len(bounds) > 2:
        raise ValueError("takes at most two bounds")
    start = bounds[0] if bounds else 0
    end = bounds[1] if len(bounds) > 1 else len(value)
    if not 0 <= start <= end <= len(value):
        raise IndexError(f"{start}:{end} is not within 0:{len(value)}")
    return value[start:end]


def _print(*values: Any) -> str:
    """Go's Sprint: a blank between two operands when neither is a string."""
    result = ""
    for position, value in enumerate(values):
        apart = position > 0 and not isinstance(value, str)
        if apart and not isinstance(values[position - 1], str):
            result += " "
        result += text(value)
    return result


def _println(*values: Any) -> str:
    return " ".join(map(text, values)) + "\n"


def _printf(template: str, *values: Any) -> str:
    remaining = list(values)

    def replace(match: re.Match[str]) -> str:
        if match["verb"] == "%":
            return "%"
        if not remaining:
            return f"%!{match['verb']}(MISSING)"
        return _formatted(match, remaining.pop(0))

    result = _VERB.sub(replace, template)
    if remaining:
        raise ValueError(f"{len(remaining)} more arguments than verbs")
    return result


def _formatted(match: re.Match[str], value: Any) -> str:
    flags, width = match["flags"], int(match["width"] or 0)
    if width > WIDTH_MAX or int(match["precision"] or 0) > WIDTH_MAX:
        raise ValueError(f"the width is above {WIDTH_MAX}")
    body = _verb(match["verb"], match["precision"], value)
    if "+" in flags and match["verb"] in "dfeg" and not body.startswith("-"):
        body = f"+{body}"
    if "-" in flags:
        return body.ljust(width)
    return body.zfill(width) if "0" in flags and match["verb"] in "dfeg" else body.rjust(width)


def _verb(verb: str, precision: str | None, value: Any) -> str:
    match verb:
        case "v" | "s":
            body = text(value)
            return body if precision is None else body[: int(precision or 0)]
        case "d":
            return str(_whole(value))
        case "x":
            return f"{_whole(value):x}" if not isinstance(value, str) else value.encode().hex()
        case "X":
            return f"{_whole(value):X}"
        case "o":
            return f"{_whole(value):o}"
        case "t":
            return text(bool(value))
        case "q":
            return json_format.dumps(text(value), ensure_ascii=False)
        case "f" | "e" | "g":
            digits = 6 if precision is None else int(precision or 0)
            return f"{float(value):.{digits}{verb}}"
        case _:
            raise ValueError(f"the verb %{verb} is not supported")


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{text(value)!r} is not a whole number")
    return value


def _eq(first: Any, second: Any, *others: Any) -> bool:
    for other in (second, *others):
        if not _comparable(first, other):
            raise TypeError(f"cannot compare {text(first)!r} with {text(other)!r}")
    return any(first == other for other in (second, *others))


def _lt(first: Any, second: Any) -> bool:
    if not _comparable(first, second) or isinstance(first, bool) or first is MISSING:
        raise TypeError(f"cannot order {text(first)!r} and {text(second)!r}")
    return bool(first < second)


def _comparable(first: Any, second: Any) -> bool:
    if first is MISSING or second is MISSING or first is None or second is None:
        return True
    if isinstance(first, bool) or isinstance(second, bool):
        return isinstance(first, bool) and isinstance(second, bool)
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    return numbers or (isinstance(first, str) and isinstance(second, str))


def _and(*values: Any) -> Any:
    return next((value for value in values if not truth(value)), values[-1])


def _or(*values: Any) -> Any:
    return next((value for value in values if truth(value)), values[-1])


def _json(value: Any) -> str:
    return json_format.dumps(
        None if value is MISSING else value, separators=(",", ":"), ensure_ascii=False
    )


def _join(values: Any, separator: str) -> str:
    return separator.join(map(text, () if value_is_nothing(values) else values))


def value_is_nothing(value: Any) -> bool:
    """Whether there is no value at all."""
    return value is MISSING or value is None


def _title(value: str) -> str:
    return re.sub(r"(?<!\w)\w", lambda match: match[0].upper(), value)


def _pad(value: str, before: int, after: int) -> str:
    if not value or max(before, after) > WIDTH_MAX:
        return value
    return " " * before + value + " " * after


def _truncate(value: str, length: int) -> str:
    return value[: max(length, 0)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "and": _and,
    "eq": _eq,
    "ge": lambda first, second: not _lt(first, second),
    "gt": lambda first, second: _lt(second, first),
    "index": _index,
    "join": _join,
    "json": _json,
    "le": lambda first, second: not _lt(second, first),
    "len": _len,
    "lower": lambda value: value.lower(),
    "lt": _lt,
    "ne": lambda first, second: not _eq(first, second),
    "not": lambda value: not truth(value),
    "or": _or,
    "pad": _pad,
    "print": _print,
    "printf": _printf,
    "println": _println,
    "slice": _slice,
    "split": lambda value, separator: value.split(separator) if separator else list(value),
    "title": _title,
    "truncate": _truncate,
    "upper": lambda value: value.upper(),
}
