"""Object ids: 25 characters of base 36, as Swarm's, and the one place where randomness enters."""

from __future__ import annotations

import re
import secrets
from typing import NewType

ClusterId = NewType("ClusterId", str)
NodeId = NewType("NodeId", str)
ServiceId = NewType("ServiceId", str)
TaskId = NewType("TaskId", str)
NetworkId = NewType("NetworkId", str)

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
_LENGTH = 25
_ID = re.compile(r"[0-9a-z]{25}")


def new_id() -> str:
    """A new random id: 25 base-36 characters, 128 random bits."""
    return base36(secrets.randbits(128), _LENGTH)


def is_id(text: str) -> bool:
    """Whether `text` has the shape of an id."""
    return _ID.fullmatch(text) is not None


def base36(number: int, length: int) -> str:
    """`number` in base 36, lower case, left-padded with zeros to `length` characters."""
    digits: list[str] = []
    while number:
        number, digit = divmod(number, 36)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits)).rjust(length, "0")
