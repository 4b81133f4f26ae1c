"""Model rows to protobuf messages and back, by the messages' own descriptors.

One converter per pair (row class, message class) is compiled at import: a row field and a message
field belong together when they have the same name, and a oneof belongs to the row field of its
name, whose members are rows called like the messages. A field without a partner is an error at
import, so the wire and the model cannot drift apart. `from_pb` is the trust boundary: unknown
enum values are refused with the name of the field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from shoal.errors import InvalidArgument, violated
from shoal.model.row import Row

RowT = TypeVar("RowT", bound=Row)
MessageT = TypeVar("MessageT", bound=Message)

Fill = Callable[[Any, Any], None]
"""(row, message): writes one field of the row into the message."""
Read = Callable[[Any, dict[str, Any]], None]
"""(message, fields): reads one field of the message into keyword arguments of the row."""


class Converter:
    """Both directions for one row class; compiled once."""

    def __init__(self, row: type[Row], message: type[Message]) -> None:
        self.row = row
        self.message = message
        self.fills: list[Fill] = []
        self.reads: list[Read] = []

    def to_pb(self, value: Row, into: Any) -> None:
        """Write every field that is set into the message."""
        for fill in self.fills:
            fill(value, into)

    def from_pb(self, message: Any) -> Any:
        """A new row from a message. Raises InvalidArgument for values the model does not know."""
        fields: dict[str, Any] = {}
        for read in self.reads:
            read(message, fields)
        return self.row(**fields)


class Codec:
    """All converters of a set of rows; rows refer to each other by class name."""

    def __init__(
        self, rows: Mapping[str, type[Row]], messages: Mapping[str, type[Message]]
    ) -> None:
        self._rows = rows
        self._messages = messages
        self._converters: dict[str, Converter] = {}
        for name in rows:
            self.converter(name)

    def converter(self, name: str) -> Converter:
        """The converter of the row and the message called `name`."""
        if name not in self._converters:
            converter = Converter(self._rows[name], self._messages[name])
            self._converters[name] = converter  # before the fields: a message may hold its own kind
            self._compile(converter, self._messages[name].DESCRIPTOR)
        return self._converters[name]

    def to_pb(self, value: Row, message_class: type[MessageT]) -> MessageT:
        """The message of a row."""
        message = message_class()
        self.converter(type(value).__name__).to_pb(value, message)
        return message

    def from_pb(self, message: Message, row: type[RowT]) -> RowT:
        """The row of a message. Raises InvalidArgument."""
        result: RowT = self.converter(row.__name__).from_pb(message)
        return result

    def _compile(self, converter: Converter, descriptor: Any) -> None:
        hints = get_type_hints(converter.row)
        names = {field.name for field in msgspec.structs.fields(converter.row)}
        used: set[str] = set()
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and not oneof.name.startswith("_"):
                used.add(oneof.name)
                continue
            if field.name not in names:
                violated("proto field has no row field", proto=descriptor.name, field=field.name)
            used.add(field.name)
            fill, read = self._field(field, hints[field.name])
            converter.fills.append(fill)
            converter.reads.append(read)
        for oneof in descriptor.oneofs:
            if not oneof.name.startswith("_"):
                fill, read = self._oneof(oneof.name, oneof.fields)
                converter.fills.append(fill)
                converter.reads.append(read)
        if used != names:
            violated("row and proto differ", proto=descriptor.name, fields=used ^ names)

    def _field(self, field: FieldDescriptor, hint: Any) -> tuple[Fill, Read]:
        sub = field.message_type
        if sub is not None and sub.GetOptions().map_entry:
            return self._map(field.name, sub.fields_by_name["value"].message_type)
        if field.is_repeated:
            return self._repeated(field, hint)
        if sub is not None:
            return _single(
                field.name, self.converter(sub.name), optional=type(None) in get_args(hint)
            )
        return _scalar(field, hint)

    def _map(self, name: str, sub: Any) -> tuple[Fill, Read]:
        if sub is None:

            def fill(value: Any, into: Any) -> None:
                entries = getattr(value, name)
                if entries:
                    with _named(name):
                        getattr(into, name).update(entries)

            def read(message: Any, fields: dict[str, Any]) -> None:
                entries = getattr(message, name)
                if entries:
                    fields[name] = dict(entries)

            return fill, read
        converter = self.converter(sub.name)

        def fill_rows(value: Any, into: Any) -> None:
            for key, entry in getattr(value, name).items():
                with _named(name):
                    target = getattr(into, name)[key]
                target.SetInParent()
                converter.to_pb(entry, target)

        def read_rows(message: Any, fields: dict[str, Any]) -> None:
            entries = getattr(message, name)
            if entries:
                fields[name] = {key: converter.from_pb(entry) for key, entry in entries.items()}

        return fill_rows, read_rows

    def _repeated(self, field: FieldDescriptor, hint: Any) -> tuple[Fill, Read]:
        name = field.name
        if field.message_type is not None:
            converter = self.converter(field.message_type.name)

            def fill_rows(value: Any, into: Any) -> None:
                items = getattr(value, name)
                if items:
                    target = getattr(into, name)
                    for item in items:
                        converter.to_pb(item, target.add())

            def read_rows(message: Any, fields: dict[str, Any]) -> None:
                items = getattr(message, name)
                if items:
                    fields[name] = tuple(converter.from_pb(item) for item in items)

            return fill_rows, read_rows
        item_type = get_args(hint)[0]
        convert = _enum_reader(name, item_type) if field.enum_type is not None else None

        def fill(value: Any, into: Any) -> None:
            items = getattr(value, name)
            if items:
                with _named(name):
                    getattr(into, name).extend(items)

        def read(message: Any, fields: dict[str, Any]) -> None:
            items = getattr(message, name)
            if items:
                fields[name] = tuple(map(convert, items)) if convert else tuple(items)

        return fill, read

    def _oneof(self, name: str, members: Any) -> tuple[Fill, Read]:
        field_by_row = {member.message_type.name: member.name for member in members}
        converter_by_row = {row: self.converter(row) for row in field_by_row}
        row_by_field = {field: row for row, field in field_by_row.items()}

        def fill(value: Any, into: Any) -> None:
            member = getattr(value, name)
            if member is not None:
                row = type(member).__name__
                target = getattr(into, field_by_row[row])
                target.SetInParent()
                converter_by_row[row].to_pb(member, target)

        def read(message: Any, fields: dict[str, Any]) -> None:
            field = message.WhichOneof(name)
            if field is not None:
                fields[name] = converter_by_row[row_by_field[field]].from_pb(
                    getattr(message, field)
                )

        return fill, read


def _single(name: str, converter: Converter, *, optional: bool) -> tuple[Fill, Read]:
    default = converter.row()

    def fill(value: Any, into: Any) -> None:
        member = getattr(value, name)
        if member is None or (not optional and member == default):
            return
        target = getattr(into, name)
        target.SetInParent()  # presence counts even when every field has its default
        converter.to_pb(member, target)

    def read(message: Any, fields: dict[str, Any]) -> None:
        if message.HasField(name):
            fields[name] = converter.from_pb(getattr(message, name))

    return fill, read


def _scalar(field: FieldDescriptor, hint: Any) -> tuple[Fill, Read]:
    name = field.name
    optional = field.containing_oneof is not None
    convert = None
    if field.enum_type is not None:
        enum_type = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
        convert = _enum_reader(name, enum_type)

    def fill(value: Any, into: Any) -> None:
        member = getattr(value, name)
        if member is not None and (optional or member):
            with _named(name):
                setattr(into, name, member)

    def read(message: Any, fields: dict[str, Any]) -> None:
        if optional and not message.HasField(name):
            return
        member = getattr(message, name)
        fields[name] = convert(member) if convert else member

    return fill, read


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Says which field a value does not fit."""
    try:
        yield
    except (ValueError, TypeError) as error:
        raise InvalidArgument(f"{field}: {error}") from error


def _enum_reader(name: str, enum_type: type[IntEnum]) -> Callable[[int], IntEnum]:
    by_number = {int(member): member for member in enum_type}

    def convert(number: int) -> IntEnum:
        member = by_number.get(number)
        if member is None:
            raise InvalidArgument(f"{name}: {number} is not a {enum_type.__name__}")
        return member

    return convert
