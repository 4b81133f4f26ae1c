"""What clients did and saw: operations with the times between which each took effect. Pure.

Invariant: an operation whose outcome is unknown has neither outcome nor return time: it may take
effect at any moment after its call, or never. A call that provably never reached a server, and a
read that failed, say nothing and are not in a history.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import msgspec
from typing_extensions import override


class Kind(Enum):
    """What a client asked for."""

    CREATE = "create"
    UPDATE = "update"
    REMOVE = "remove"
    GET = "get"
    LIST = "list"


class Result(Enum):
    """What it was told."""

    OK = "ok"
    EXISTS = "exists"
    MISSING = "missing"
    CONFLICT = "conflict"


class Item(msgspec.Struct, frozen=True):
    """One named object. Values are unique per write, versions rise with every write."""

    name: str
    value: str
    version: int


class Call(msgspec.Struct, frozen=True):
    """A request. `version` is what an update has read; `group` holds the names a list shows."""

    kind: Kind
    group: str
    name: str = ""
    value: str = ""
    version: int = 0


class Outcome(msgspec.Struct, frozen=True):
    """An answer: `items` holds the object written or read, or all that a list showed."""

    result: Result
    items: tuple[Item, ...] = ()


class Operation(msgspec.Struct, frozen=True):
    """A call of a client, times in nanoseconds on one monotonic clock."""

    client: int
    call: Call
    called_ns: int
    outcome: Outcome | None = None
    returned_ns: int | None = None

    @property
    def is_known(self) -> bool:
        """Whether the client got an answer."""
        return self.outcome is not None

    @override
    def __str__(self) -> str:
        call = self.call
        about = " ".join(str(part) for part in (call.name or call.group, call.value) if part)
        expected = f" at {call.version}" if call.version else ""
        if self.outcome is None or self.returned_ns is None:
            seen, end = "?", "..."
        else:
            items = ", ".join(f"{i.name}={i.value}@{i.version}" for i in self.outcome.items)
            seen = f"{self.outcome.result.value} {items}".rstrip()
            end = f"{self.returned_ns / 1e6:.2f}"
        times = f"{self.called_ns / 1e6:.2f}-{end} ms"
        return f"client {self.client}: {call.kind.value} {about}{expected} -> {seen} [{times}]"


def by_group(history: Iterable[Operation]) -> dict[str, list[Operation]]:
    """Histories that can be judged apart, because no operation touches two of them."""
    groups: dict[str, list[Operation]] = {}
    for operation in history:
        groups.setdefault(operation.call.group, []).append(operation)
    return groups


def acknowledged(history: Iterable[Operation]) -> dict[str, Item]:
    """By value: everything a create or update was told to have written."""
    return {
        item.value: item
        for operation in history
        if operation.outcome and operation.outcome.result is Result.OK
        if operation.call.kind in (Kind.CREATE, Kind.UPDATE)
        for item in operation.outcome.items
    }
