"""Query strings as Docker reads them. Pure.

A flag is false when absent, empty, `0`, `no`, `false` or `none` in any case, and true otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import parse_qsl

from engine.http.errors import Refused
from engine.http.filters import Filters, parse_filters
from shoal.errors import InvalidArgument

_FALSE = frozenset(("", "0", "no", "false", "none"))
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_SECONDS = re.compile(r"([0-9]{1,12})(?:\.([0-9]{1,9}))?")
PARAMETERS_MAX = 1000


class Query:
    """The parameters of one call; of one that is given twice, the first counts."""

    def __init__(self, text: str) -> None:
        """text: what follows the question mark, as it came. Raises: InvalidArgument."""
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=PARAMETERS_MAX)
        except ValueError:
            raise InvalidArgument(f"query: more than {PARAMETERS_MAX} parameters") from None
        self._values: dict[str, list[str]] = {}
        for name, value in pairs:
            self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        """A parameter as it is."""
        return self._values.get(name, [default])[0]

    def many(self, name: str) -> list[str]:
        """Every value of a parameter that may be repeated."""
        return self._values.get(name, [])

    def flag(self, name: str, *, default: bool = False) -> bool:
        """A parameter as a boolean; `default` when it is absent."""
        if name not in self._values:
            return default
        return self.text(name).strip().lower() not in _FALSE

    def number(self, name: str, default: int = 0) -> int:
        """A parameter as an integer; absent or empty: the default. Raises: Refused 500."""
        value = self.text(name)
        if not value:
            return default
        if not _INTEGER.fullmatch(value):
            raise Refused(500, f'strconv.Atoi: parsing "{value}": invalid syntax')
        return int(value)

    def time_ns(self, name: str) -> int | None:
        """A moment as Unix seconds with up to nine decimals, in nanoseconds; None without one.

        Raises: InvalidArgument.
        """
        value = self.text(name)
        if not value or value == "0":
            return None
        found = _SECONDS.fullmatch(value)
        if found is None:
            raise InvalidArgument(f"{name}: {value!r} must be Unix seconds like 1700000000.5")
        return int(found[1]) * 1_000_000_000 + int((found[2] or "").ljust(9, "0"))

    def filters(self, accepted: Collection[str] | None = None) -> Filters:
        """The `filters` parameter. accepted: names that are known; None passes all.

        Raises: Refused 500 for what is no JSON, InvalidArgument `Invalid filter 'x'`.
        """
        filters = parse_filters(self.text("filters"))
        if accepted is not None:
            filters.check(accepted)
        return filters
