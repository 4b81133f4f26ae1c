"""JSON-like values that know more than their keys: for templates, which ask for absent fields.

To an encoder both are plain objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class Record(dict[str, Any]):
    """An object with known fields; those in `absent` are left out as empty."""

    def __init__(self, fields: Mapping[str, Any], absent: Iterable[str] = ()) -> None:
        super().__init__(fields)
        self.absent = frozenset(absent)


class OpenMap(dict[str, Any]):
    """A map whose keys are the user's, such as labels; in their order, as Docker shows maps."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__(sorted(entries.items()))


def record(required: Mapping[str, Any], /, **optional: Any) -> Record:
    """An object; of the optional fields only those that are not empty."""
    kept = {name: value for name, value in optional.items() if value}
    return Record({**required, **kept}, absent=[name for name in optional if name not in kept])


def compact(**fields: Any) -> Record:
    """An object of the fields that are not None, in this order; the others are known as absent."""
    kept = {name: value for name, value in fields.items() if value is not None}
    return Record(kept, absent=[name for name in fields if name not in kept])
