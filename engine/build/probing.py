"""Which image an equal step has made before. Pure.

Equal: the same parent, the same configuration, the same entry in the history. What a step read or
copied is part of that entry, as hashes and arguments.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from shoal.model.row import Row


class Made(Row, frozen=True):
    """An image of this node and the step that made it."""

    id: str
    created: str
    config: Mapping[str, Any]
    created_by: str


def find_equal(made: Iterable[Made], config: Mapping[str, Any], created_by: str) -> str | None:
    """The id of the newest of a parent's children that the step would make again."""
    wanted = _said(config)
    equal = [one for one in made if one.created_by == created_by and _said(one.config) == wanted]
    return max(equal, key=lambda one: (one.created, one.id)).id if equal else None


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a configuration says: empty and absent are the same."""
    return {name: value for name, value in config.items() if value not in (None, "", [], {}, 0)}
