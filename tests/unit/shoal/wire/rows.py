"""Hypothesis strategies for rows, from their annotations and the ranges of their proto fields."""

from __future__ import annotations

import functools
import types
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, Union, get_args, get_origin, get_type_hints

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import strategies as st

from shoal.model.row import Row
from shoal.wire.objects import CODEC

_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@functools.cache
def rows_of(row: type[Row]) -> st.SearchStrategy[Any]:
    """Any value of a row."""
    hints = get_type_hints(row)
    fields = CODEC.converter(row.__name__).message.DESCRIPTOR.fields_by_name
    parts = {
        field.name: _values(hints[field.name], fields.get(field.name))
        for field in msgspec.structs.fields(row)
    }
    return st.builds(row, **parts)


def _values(hint: Any, field: FieldDescriptor | None) -> st.SearchStrategy[Any]:
    origin, args = get_origin(hint), get_args(hint)
    if origin in {types.UnionType, Union}:
        return st.one_of(st.none() if arg is type(None) else _values(arg, field) for arg in args)
    if origin is tuple:
        return st.lists(_values(args[0], field), max_size=2).map(tuple)
    if origin is Mapping:
        value = None if field is None else field.message_type.fields_by_name["value"]
        return st.dictionaries(TEXT, _values(args[1], value), max_size=2)
    if issubclass(hint, Row):
        return rows_of(hint)
    if issubclass(hint, IntEnum):
        return st.sampled_from(hint)
    if hint is int:
        low, high = _RANGES[field.type]
        return st.integers(low, high)
    return {
        bool: st.booleans(),
        str: TEXT,
        bytes: st.binary(max_size=8),
        float: st.floats(allow_nan=False),
    }[hint]
