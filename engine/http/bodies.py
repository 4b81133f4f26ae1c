"""JSON bodies as Go reads them: keys in any case, unknown keys passed over, null is absent. Pure.

Kinds are `msgspec.Struct`s in Docker's own spelling (`rename="pascal"` or names field by field).
Before conversion each object's keys are folded onto its struct's, by a plan that is made once per
kind. Clients depend on it: docker-py writes `replicated`, Compose `CPURealtimePeriod`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, TypeVar, cast

import msgspec
from msgspec import inspect

from engine.http import gojson
from engine.http.errors import Refused
from shoal.errors import InvalidArgument

Kind = TypeVar("Kind")
BODY_BYTES_MAX = 8 << 20

_Fold = Callable[[Any], Any]


def decode(data: bytes, kind: type[Kind]) -> Kind:
    """A body as `kind`.

    Raises: Refused 500 in Go's words for what is no JSON; InvalidArgument naming the field.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refused(500, gojson.explain(data)) from None
    return convert(value, kind)


def convert(value: object, kind: type[Kind]) -> Kind:
    """A decoded JSON value as `kind`. Raises: InvalidArgument naming the field."""
    fold = _plan(cast("Hashable", kind))
    try:
        return msgspec.convert({} if value is None else fold(value), kind)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"invalid request: {_reworded(str(error))}") from None


def _reworded(text: str) -> str:
    """`Expected `int`, got `str` - at `$.A.b`` as `A.b: expected int, got str`."""
    what, _, where = text.replace("`", "").partition(" - at $.")
    what = what[:1].lower() + what[1:]
    return f"{where}: {what}" if where else what


@cache
def _plan(kind: Hashable) -> _Fold:
    plans: dict[type, _Fold] = {}
    return _fold_of(inspect.type_info(kind), plans) or _as_is


def _fold_of(info: inspect.Type, plans: dict[type, _Fold]) -> _Fold | None:
    """How to fold a value of this type; None when it has no keys of ours inside."""
    if isinstance(info, inspect.StructType):
        return _fold_struct(info, plans)
    if isinstance(info, inspect.UnionType):
        return next(filter(None, (_fold_of(one, plans) for one in info.types)), None)
    if isinstance(info, inspect.DictType):
        return _fold_values(_fold_of(info.value_type, plans))
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        return _fold_items(_fold_of(info.item_type, plans))
    return None


def _fold_struct(info: inspect.StructType, plans: dict[type, _Fold]) -> _Fold:
    if info.cls in plans:  # a kind that contains itself
        return plans[info.cls]
    names: dict[str, tuple[str, _Fold | None]] = {}

    def fold(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        folded = {}
        for key, item in value.items():
            known = names.get(key.lower())
            if known is not None and item is not None:
                folded[known[0]] = item if known[1] is None else known[1](item)
        return folded

    plans[info.cls] = fold
    for field in info.fields:
        names[field.encode_name.lower()] = (field.encode_name, _fold_of(field.type, plans))
    return fold


def _fold_values(fold: _Fold | None) -> _Fold | None:
    if fold is None:
        return None
    return lambda value: (
        {key: fold(item) for key, item in value.items()} if isinstance(value, dict) else value
    )


def _fold_items(fold: _Fold | None) -> _Fold | None:
    if fold is None:
        return None
    return lambda value: [fold(item) for item in value] if isinstance(value, list) else value


def _as_is(value: Any) -> Any:
    return value
