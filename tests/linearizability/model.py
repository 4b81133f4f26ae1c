"""What one manager without failures would answer: a set of names and a register under each. Pure.

A state is immutable and hashable. `step` says what the state is after an operation, or None if
the operation cannot have had its outcome in this state. A version that no client has seen yet is
0 until a read tells it; the versions of one name never fall, also over its removal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from tests.linearizability.history import Call, Item, Kind, Operation, Outcome, Result

UNKNOWN_VERSION = 0


class Slot(msgspec.Struct, frozen=True):
    """A name: `value` is "" while nothing has it. `floor` is the highest version seen so far."""

    value: str = ""
    version: int = UNKNOWN_VERSION
    floor: int = UNKNOWN_VERSION


State = tuple[tuple[str, Slot], ...]
"""Names in order, those never written left out."""


class Model(Protocol):
    """What the checker needs to know of a system."""

    @property
    def initial(self) -> State:
        """The state before the first operation."""
        ...

    def step(self, state: State, operation: Operation) -> State | None:
        """The state after it; None if its outcome is impossible here."""
        ...


class ServiceModel:
    """Services of one group of names: created once, changed by version, removed, read, listed."""

    initial: State = ()

    def step(self, state: State, operation: Operation) -> State | None:
        """See `Model`. An unknown outcome is whatever the state makes of the call."""
        slots = dict(state)
        call, outcome = operation.call, operation.outcome
        if call.kind is Kind.LIST:
            return _listed(slots, outcome)
        slot = slots.get(call.name, Slot())
        after = _unknown(slot, call) if outcome is None else _known(slot, call, outcome)
        if after is None:
            return None
        return _state({**slots, call.name: after})


def _state(slots: Mapping[str, Slot]) -> State:
    return tuple(sorted((name, slot) for name, slot in slots.items() if slot != Slot()))


def _unknown(slot: Slot, call: Call) -> Slot | None:
    """None also where it would change nothing: not to place it says the same, cheaper."""
    match call.kind:
        case Kind.CREATE if not slot.value:
            return Slot(call.value, UNKNOWN_VERSION, slot.floor)
        case Kind.UPDATE if slot.value and slot.version == call.version:
            return Slot(call.value, UNKNOWN_VERSION, slot.floor)
        case Kind.REMOVE if slot.value:
            return Slot("", UNKNOWN_VERSION, slot.floor)
        case _:
            return None


def _known(slot: Slot, call: Call, outcome: Outcome) -> Slot | None:
    match call.kind, outcome.result:
        case Kind.CREATE, Result.OK:
            return None if slot.value else _written(slot, call, outcome)
        case Kind.CREATE, Result.EXISTS:
            return slot if slot.value else None
        case Kind.UPDATE, Result.OK:
            fits = slot.value and slot.version == call.version
            return _written(slot, call, outcome) if fits else None
        case Kind.UPDATE, Result.CONFLICT:
            # A version nobody has read yet is not the one this client has read.
            return slot if slot.value and slot.version != call.version else None
        case Kind.REMOVE, Result.OK:
            return Slot("", UNKNOWN_VERSION, slot.floor) if slot.value else None
        case Kind.GET, Result.OK:
            return _read(slot, outcome.items[0])
        case ((Kind.GET | Kind.UPDATE | Kind.REMOVE), Result.MISSING):
            return None if slot.value else slot
        case _:
            return None


def _written(slot: Slot, call: Call, outcome: Outcome) -> Slot | None:
    (item,) = outcome.items
    if item.value != call.value or item.version <= slot.floor:
        return None
    return Slot(item.value, item.version, item.version)


def _read(slot: Slot, item: Item) -> Slot | None:
    if item.value != slot.value:
        return None
    if slot.version == UNKNOWN_VERSION:
        fits = item.version > slot.floor
        return Slot(item.value, item.version, item.version) if fits else None
    return slot if slot.version == item.version else None


def _listed(slots: dict[str, Slot], outcome: Outcome | None) -> State | None:
    if outcome is None:
        return None
    shown = {item.name: item for item in outcome.items}
    if shown.keys() != {name for name, slot in slots.items() if slot.value}:
        return None
    for name, item in shown.items():
        after = _read(slots[name], item)
        if after is None:
            return None
        slots[name] = after
    return _state(slots)
