"""Enum members as flags and JSON spell them."""

from __future__ import annotations

from enum import IntEnum


def spell(member: IntEnum) -> str:
    """An enum member as flags and JSON spell it: `ON_FAILURE` is `on-failure`."""
    return member.name.lower().replace("_", "-")
