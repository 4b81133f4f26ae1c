"""Model rows to protobuf messages and back, by the messages' own descriptors.

One converter per pair (row class, message class) is compiled at import: a row field and a message
field belong together when they have the same name, and a oneof belongs to the row field of its
name, whose members are rows called like the messages. A field without a partner is an error at
import, so the wire and the model cannot drift apart. `from_pb` is the trust boundary: unknown
enum values are refused with the name of the field.

Every change of the state passes here, on each manager: a converter touches what is set, and tests
what is not with as little as it can. What many rows have in common (`shared`) is converted once,
and is one row in memory however many messages it came with.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import IntEnum
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import msgspec
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from shoal.errors import InvalidArgument, violated
from shoal.model.row import Row

RowT = TypeVar("RowT", bound=Row)
MessageT = TypeVar("MessageT", bound=Message)

SHARED_MAX = 1024
"""Parts remembered of each kind and direction; when there are more, all are forgotten."""

Fill = Callable[[Any, Any], None]
"""(member, message): writes a member of the row that is not None into the message."""
Convert = Callable[[Any], Any]
"""From a field of a message to a member of the row."""


class _Read(NamedTuple):
    """Which member of the row a field becomes; convert None: as it is."""

    name: str
    convert: Convert | None


class Converter:
    """Both directions for one row class; compiled once.

    scalars are written unless they are zero, optionals unless they are None, parts by their own
    functions. reads: by number of the field.
    """

    __slots__ = ("message", "optionals", "parts", "reads", "row", "scalars")

    def __init__(self, row: type[Row], message: type[Message]) -> None:
        self.row = row
        self.message = message
        self.scalars: list[str] = []
        self.optionals: list[str] = []
        self.parts: list[tuple[str, Fill]] = []
        self.reads: dict[int, _Read] = {}

    def to_pb(self, value: Row, into: Any) -> None:
        """Write every field that is set into the message. Raises InvalidArgument."""
        name = ""
        try:
            for name in self.scalars:
                member = getattr(value, name)
                if member:
                    setattr(into, name, member)
            for name in self.optionals:
                member = getattr(value, name)
                if member is not None:
                    setattr(into, name, member)
            for name, fill in self.parts:
                member = getattr(value, name)
                if member is not None:
                    fill(member, into)
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"{name}: {error}") from error

    def from_pb(self, message: Any) -> Any:
        """A new row from a message. Raises InvalidArgument for values the model does not know."""
        fields: dict[str, Any] = {}
        reads = self.reads
        for descriptor, member in message.ListFields():
            name, convert = reads[descriptor.number]
            fields[name] = member if convert is None else convert(member)
        return self.row(**fields)


class Codec:
    """All converters of a set of rows; rows refer to each other by class name."""

    def __init__(
        self,
        rows: Mapping[str, type[Row]],
        messages: Mapping[str, type[Message]],
        *,
        shared: Collection[tuple[str, str]] = (),
    ) -> None:
        """shared: (row, field) of parts that are the same in many rows."""
        self._rows = rows
        self._messages = messages
        self._shared = shared
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
        members = {field.name: field for field in msgspec.structs.fields(converter.row)}
        used: set[str] = set()
        for field in descriptor.fields:
            oneof = field.containing_oneof
            if oneof is not None and not oneof.name.startswith("_"):
                used.add(oneof.name)
                continue
            if field.name not in members:
                violated("proto field has no row field", proto=descriptor.name, field=field.name)
            used.add(field.name)
            self._field(converter, field, hints[field.name], members[field.name].default)
        for oneof in descriptor.oneofs:
            if not oneof.name.startswith("_"):
                self._oneof(converter, oneof.name, oneof.fields)
        if used != members.keys():
            violated("row and proto differ", proto=descriptor.name, fields=used ^ members.keys())

    def _field(self, converter: Converter, field: FieldDescriptor, hint: Any, default: Any) -> None:
        name, sub = field.name, field.message_type
        if sub is not None and sub.GetOptions().map_entry:
            value = sub.fields_by_name["value"].message_type
            fill, convert = _map(name, None if value is None else self.converter(value.name))
        elif field.is_repeated:
            fill, convert = self._repeated(field, hint)
        elif sub is not None:
            part = self.converter(sub.name)
            shared = (converter.row.__name__, name) in self._shared
            fill = _single(name, part, optional=type(None) in get_args(hint), shared=shared)
            convert = _Known(part) if shared else part.from_pb
        else:
            _scalar(converter, field, hint, default)
            return
        converter.parts.append((name, fill))
        converter.reads[field.number] = _Read(name, convert)

    def _repeated(self, field: FieldDescriptor, hint: Any) -> tuple[Fill, Convert]:
        name = field.name
        if field.message_type is not None:
            part = self.converter(field.message_type.name)

            def fill_rows(items: Any, into: Any) -> None:
                if items:
                    target = getattr(into, name)
                    for item in items:
                        part.to_pb(item, target.add())

            return fill_rows, lambda items: tuple(map(part.from_pb, items))

        def fill(items: Any, into: Any) -> None:
            if items:
                getattr(into, name).extend(items)

        if field.enum_type is None:
            return fill, tuple
        member = _enum_reader(name, get_args(hint)[0])
        return fill, lambda numbers: tuple(map(member, numbers))

    def _oneof(self, converter: Converter, name: str, fields: Any) -> None:
        by_row: dict[str, tuple[str, Converter]] = {}
        for field in fields:
            part = self.converter(field.message_type.name)
            by_row[field.message_type.name] = field.name, part
            converter.reads[field.number] = _Read(name, part.from_pb)

        def fill(member: Any, into: Any) -> None:
            field_name, part = by_row[type(member).__name__]
            target = getattr(into, field_name)
            target.SetInParent()
            part.to_pb(member, target)

        converter.parts.append((name, fill))


def _map(name: str, part: Converter | None) -> tuple[Fill, Convert]:
    if part is None:

        def fill(entries: Any, into: Any) -> None:
            if entries:
                getattr(into, name).update(entries)

        return fill, dict

    def fill_rows(entries: Any, into: Any) -> None:
        for key, entry in entries.items():
            target = getattr(into, name)[key]
            target.SetInParent()
            part.to_pb(entry, target)

    return fill_rows, lambda entries: {key: part.from_pb(entry) for key, entry in entries.items()}


def _single(name: str, part: Converter, *, optional: bool, shared: bool) -> Fill:
    default = None if optional else part.row()
    known: dict[int, tuple[Row, Message | None]] = {}

    def fill(member: Any, into: Any) -> None:
        if member == default:
            return
        target = getattr(into, name)
        target.SetInParent()  # presence counts even when every field has its default
        part.to_pb(member, target)

    def fill_shared(member: Any, into: Any) -> None:
        """As `fill`. A row that is remembered stays alive, so its id is nobody else's."""
        found = known.get(id(member))
        if found is None:
            fill(member, into)
            if len(known) >= SHARED_MAX:
                known.clear()
            known[id(member)] = member, _copy(getattr(into, name)) if into.HasField(name) else None
        elif found[1] is not None:
            target = getattr(into, name)
            target.SetInParent()
            target.CopyFrom(found[1])

    return fill_shared if shared else fill


def _copy(message: MessageT) -> MessageT:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


class _Known:
    """Reads a shared part: the row that equal bytes gave before."""

    __slots__ = ("_part", "_rows")

    def __init__(self, part: Converter) -> None:
        self._part = part
        self._rows: dict[bytes, Row] = {}

    def __call__(self, message: Any) -> Row:
        data = message.SerializeToString()
        row = self._rows.get(data)
        if row is None:
            if len(self._rows) >= SHARED_MAX:
                self._rows.clear()
            row = self._rows[data] = self._part.from_pb(message)
        return row


def _scalar(converter: Converter, field: FieldDescriptor, hint: Any, default: Any) -> None:
    name = field.name
    optional = field.containing_oneof is not None
    (converter.optionals if optional else converter.scalars).append(name)
    convert = None
    if field.enum_type is not None:
        enum_type = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
        convert = _enum_reader(name, enum_type)
    converter.reads[field.number] = _Read(name, convert)
    if not optional:
        zero = field.default_value if convert is None else convert(field.default_value)
        if default != zero:  # unset means zero in the message, and the default in the row
            violated("row default is not zero", row=converter.row.__name__, field=name)


def _enum_reader(name: str, enum_type: type[IntEnum]) -> Callable[[int], IntEnum]:
    by_number = {int(member): member for member in enum_type}

    def convert(number: int) -> IntEnum:
        member = by_number.get(number)
        if member is None:
            raise InvalidArgument(f"{name}: {number} is not a {enum_type.__name__}")
        return member

    return convert
