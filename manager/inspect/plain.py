"""Rows as plain values for people and JSON; what opens doors is left out. Pure.

Invariant: a field listed in `SECRET_FIELDS` appears only as its size, however deep it stands. Empty
fields are left out, so that an object shows what it has.
"""

from __future__ import annotations

import base64
import functools
import typing
from collections.abc import Mapping
from enum import Enum
from types import UnionType
from typing import Any

from shoal.model.row import Row

SECRET_FIELDS = frozenset(
    {
        ("CaConfig", "signing_ca_key"),
        ("EncryptionKey", "key"),
        ("ExtraJoinToken", "token"),
        ("JoinTokens", "manager"),
        ("JoinTokens", "worker"),
        ("PullOptions", "registry_auth"),
        ("RootCa", "key"),
        ("RootRotation", "ca_key"),
        ("SecretSpec", "data"),
    }
)
"""(row, field). A test compares them with every field of the model that looks like one."""


def plain(value: object, *, show_secrets: bool = False) -> Any:
    """A row, or what a row holds, as dicts, lists, strings and numbers.

    Enumerations become their names, bytes become text or base64, a field of several possible rows
    names the one it holds.
    """
    if isinstance(value, Row):
        return _row(value, show_secrets)
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each, show_secrets=show_secrets) for key, each in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(each, show_secrets=show_secrets) for each in value]
    return value


def _row(row: Row, show_secrets: bool) -> dict[str, Any]:
    name = type(row).__name__
    choices = _choices(type(row))
    shown: dict[str, Any] = {}
    for field in row.__struct_fields__:
        value = getattr(row, field)
        if value is None or (isinstance(value, str | bytes | tuple | Mapping) and not value):
            continue
        if (name, field) in SECRET_FIELDS and not show_secrets:
            shown[field] = f"<{len(value)} bytes left out>"
            continue
        found = plain(value, show_secrets=show_secrets)
        shown[field] = {type(value).__name__: found} if field in choices else found
    return shown


@functools.cache
def _choices(row: type[Row]) -> frozenset[str]:
    """The fields that hold one of several kinds of row."""
    found: set[str] = set()
    for field, hint in typing.get_type_hints(row).items():
        if typing.get_origin(hint) in (typing.Union, UnionType):
            rows = [
                each for each in typing.get_args(hint)
                if isinstance(each, type) and issubclass(each, Row)
            ]  # fmt: skip
            if len(rows) > 1:
                found.add(field)
    return frozenset(found)


def _text(data: bytes) -> str:
    """Text where it is text (PEM, configs), base64 elsewhere."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = ""
    readable = text and all(letter.isprintable() or letter in "\n\t\r" for letter in text)
    return text if readable else "base64:" + base64.b64encode(data).decode()
