"""Edits of lists and maps that keep the order of what stays."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

ItemT = TypeVar("ItemT")

Flags = Mapping[str, Any]
"""The flags that were given, by parameter name; a flag that was not given is not in it."""


def merged(
    current: Iterable[ItemT],
    *,
    add: Iterable[ItemT] = (),
    remove: Iterable[Hashable] = (),
    key: Callable[[ItemT], Hashable],
) -> tuple[ItemT, ...]:
    """`current` without the keys in `remove`, then `add`: replaced in place or appended."""
    gone = set(remove)
    result = {key(item): item for item in current if key(item) not in gone}
    result.update((key(item), item) for item in add)
    return tuple(result.values())


def edited_list(current: Iterable[str], flags: Flags, name: str) -> tuple[str, ...]:
    """A list of plain words under the flags `<name>_add` and `<name>_rm`."""
    return merged(
        current, add=flags.get(f"{name}_add", ()), remove=flags.get(f"{name}_rm", ()), key=_self
    )


def edited_map(current: Mapping[str, str], flags: Flags, name: str) -> dict[str, str]:
    """A map under the flags `<name>_add` (pairs) and `<name>_rm` (keys)."""
    gone = set(flags.get(f"{name}_rm", ()))
    kept = {key: value for key, value in current.items() if key not in gone}
    return kept | dict(flags.get(f"{name}_add", ()))


def _self(item: str) -> str:
    return item
