"""Docker's words for choices, read back into enum members. Pure."""

from __future__ import annotations

from enum import IntEnum
from typing import TypeVar

from shoal.docker.words import spell
from shoal.errors import InvalidArgument

Choice = TypeVar("Choice", bound=IntEnum)


def chosen(kind: type[Choice], text: str, field: str, default: Choice | None = None) -> Choice:
    """The member that is spelled like that; of an empty text the default.

    Raises: InvalidArgument naming the field and what there is.
    """
    if not text and default is not None:
        return default
    for member in kind:
        if spell(member) == text.lower():
            return member
    known = ", ".join(spell(member) for member in kind)
    raise InvalidArgument(f'invalid {field}: "{text}": must be one of {known}')
