"""The model's rows on the wire: one pair of functions for all of them, plus log entries."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from shoal.api.v1 import objects_pb2, specs_pb2, types_pb2
from shoal.errors import InvalidArgument
from shoal.model import objects, specs, types
from shoal.model.enums import ActionKind
from shoal.model.objects import AnyObject, StoreAction, StoreEntry
from shoal.model.row import Row
from shoal.wire.codec import Codec

RowT = TypeVar("RowT", bound=Row)
MessageT = TypeVar("MessageT", bound=Message)

# Messages that have no row of their own: they only wrap objects in log entries and events.
WRAPPERS = {"Object", "StoreAction", "StoreEntry"}


def _rows(module: ModuleType) -> dict[str, type[Row]]:
    return {
        name: value
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, Row) and value.__module__ == module.__name__
    }


def _messages(module: ModuleType) -> dict[str, type[Message]]:
    return {name: getattr(module, name) for name in module.DESCRIPTOR.message_types_by_name}


_MESSAGES = {**_messages(types_pb2), **_messages(specs_pb2), **_messages(objects_pb2)}
_ROWS = {
    name: row
    for name, row in {**_rows(types), **_rows(specs), **_rows(objects)}.items()
    if name not in WRAPPERS
}
_SHARED = {("Task", "spec"), ("Task", "service_annotations"), ("Task", "endpoint")}
"""What all tasks of a service have in common."""
CODEC = Codec(_ROWS, _MESSAGES, shared=_SHARED)

_OBJECT_FIELD = {
    "Node": "node",
    "Service": "service",
    "Task": "task",
    "Network": "network",
    "Cluster": "cluster",
    "Secret": "secret",
    "Config": "config",
    "Stack": "stack",
    "Revision": "revision",
}
_OBJECT_ROW: dict[str, type[AnyObject]] = {
    "node": objects.Node,
    "service": objects.Service,
    "task": objects.Task,
    "network": objects.Network,
    "cluster": objects.Cluster,
    "secret": objects.Secret,
    "config": objects.Config,
    "stack": objects.Stack,
    "revision": objects.Revision,
}


def to_pb(row: Row, message: type[MessageT]) -> MessageT:
    """The message of a row. Raises InvalidArgument for a number that does not fit its field."""
    return CODEC.to_pb(row, message)


def from_pb(message: Message, row: type[RowT]) -> RowT:
    """The row of a message. Raises InvalidArgument for enum values the model does not know."""
    return CODEC.from_pb(message, row)


def fill_pb(row: Row, message: Message) -> None:
    """Write a row into an existing message of the same name."""
    CODEC.converter(type(row).__name__).to_pb(row, message)


def object_to_pb(value: AnyObject) -> objects_pb2.Object:
    """The message that can hold an object of any kind."""
    message = objects_pb2.Object()
    _fill_object(value, message)
    return message


def _fill_object(value: AnyObject, message: objects_pb2.Object) -> None:
    target = getattr(message, _OBJECT_FIELD[type(value).__name__])
    target.SetInParent()
    fill_pb(value, target)


def object_from_pb(message: objects_pb2.Object) -> AnyObject:
    """The object in a message. Raises InvalidArgument when there is none."""
    kind = message.WhichOneof("object")
    if kind is None:
        raise InvalidArgument("object: empty, or of a kind this version does not know")
    result: AnyObject = from_pb(getattr(message, kind), _OBJECT_ROW[kind])
    return result


def object_to_bytes(value: AnyObject) -> bytes:
    """An object as a snapshot record."""
    return object_to_pb(value).SerializeToString()


def object_from_bytes(data: bytes) -> AnyObject:
    """An object from a snapshot record. Raises InvalidArgument."""
    try:
        return object_from_pb(objects_pb2.Object.FromString(data))
    except DecodeError as error:
        raise InvalidArgument(f"object: {error}") from error


def entry_to_bytes(entry: StoreEntry) -> bytes:
    """A transaction as the data of a log entry."""
    message = objects_pb2.StoreEntry(proposed_at_ns=entry.proposed_at_ns)
    for action in entry.actions:
        target = message.actions.add()
        target.kind = objects_pb2.ActionKind.ValueType(action.kind)
        target.expected_version = action.expected_version
        _fill_object(action.object, target.object)
    return message.SerializeToString()


def entry_from_bytes(data: bytes) -> StoreEntry:
    """A transaction from the data of a log entry. Raises InvalidArgument."""
    try:
        message = objects_pb2.StoreEntry.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"log entry: {error}") from error
    return StoreEntry(
        actions=tuple(_action_from_pb(action) for action in message.actions),
        proposed_at_ns=message.proposed_at_ns,
    )


def _action_from_pb(message: objects_pb2.StoreAction) -> StoreAction:
    try:
        kind = ActionKind(message.kind)
    except ValueError:
        raise InvalidArgument(f"kind: {message.kind} is not an ActionKind") from None
    return StoreAction(
        kind=kind,
        object=object_from_pb(message.object),
        expected_version=message.expected_version,
    )
