"""The `filters` parameter of lists, prunes and events. Pure.

It comes in two encodings, `{"status": {"running": true}}` from Go and `{"status": ["running"]}`
from Python, and empty. Values of one name are alternatives; different names must all hold; of
labels all must be there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec

from engine.http import gojson
from engine.http.errors import Refused
from shoal.errors import InvalidArgument


class Filters:
    """Wished values by name. Without a wish for a name everything matches it."""

    def __init__(self, values: Mapping[str, Iterable[str]] | None = None) -> None:
        self._values = {name: tuple(given) for name, given in (values or {}).items()}

    def __bool__(self) -> bool:
        return any(self._values.values())

    def __contains__(self, name: str) -> bool:
        return bool(self._values.get(name))

    def values(self, name: str) -> tuple[str, ...]:
        """What was wished for a name, in the order it came."""
        return self._values.get(name, ())

    def check(self, accepted: Collection[str]) -> None:
        """Refuse names nobody knows. Raises: InvalidArgument."""
        for name in self._values:
            if name not in accepted:
                raise InvalidArgument(f"Invalid filter '{name}'")

    def matches(self, name: str, value: str) -> bool:
        """Whether `value` is wished, letter by letter."""
        return name not in self or value in self._values[name]

    def matches_any(self, name: str, values: Collection[str]) -> bool:
        """Whether one of `values` is wished."""
        return name not in self or any(wish in values for wish in self._values[name])

    def matches_prefix(self, name: str, value: str) -> bool:
        """Whether `value` begins with a wish, as ids are given."""
        return name not in self or any(value.startswith(wish) for wish in self._values[name])

    def matches_part(self, name: str, value: str) -> bool:
        """Whether a wish is contained in `value`, as names are given."""
        return name not in self or any(wish in value for wish in self._values[name])

    def matches_labels(self, labels: Mapping[str, str], name: str = "label") -> bool:
        """Whether all wished labels are there; `key` alone asks for any value."""
        return all(_has_label(labels, wish) for wish in self.values(name))

    def lacks_labels(self, labels: Mapping[str, str]) -> bool:
        """Whether none of the labels of `label!` is there."""
        return not any(_has_label(labels, wish) for wish in self.values("label!"))

    def flag(self, name: str, *, default: bool) -> bool:
        """A wish that is a boolean, like `dangling`. Raises: InvalidArgument."""
        wishes = {wish.lower() for wish in self.values(name)}
        truths = {wish in {"1", "true"} for wish in wishes}
        if not wishes:
            return default
        if len(truths) > 1 or not wishes <= {"0", "1", "true", "false"}:
            given = ", ".join(sorted(wishes))
            raise InvalidArgument(f"invalid filter '{name}=[{given}]'")
        return truths.pop()


def parse_filters(text: str) -> Filters:
    """Either encoding. Raises: Refused 500 for what is no JSON, InvalidArgument for other JSON."""
    if not text:
        return Filters()
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(500, gojson.explain(text.encode(errors="replace"))) from None
    if value is None:
        return Filters()
    if not isinstance(value, dict):
        raise InvalidArgument("filters: must be a JSON object of names and values")
    return Filters({name: _wishes(name, given) for name, given in value.items()})


def _wishes(name: str, given: object) -> list[str]:
    if isinstance(given, dict):
        given = [wish for wish, wanted in given.items() if wanted is not False]
    elif isinstance(given, str | bool | int):
        given = [given]
    if not isinstance(given, list):
        raise InvalidArgument(f"filters: {name}: must be a list of values")
    return [_text(name, wish) for wish in given]


def _text(name: str, wish: object) -> str:
    if isinstance(wish, bool):
        return "true" if wish else "false"
    if isinstance(wish, str | int):
        return str(wish)
    raise InvalidArgument(f"filters: {name}: must be a list of texts")


def _has_label(labels: Mapping[str, str], wish: str) -> bool:
    key, separator, value = wish.partition("=")
    return key in labels and (not separator or labels[key] == value)
