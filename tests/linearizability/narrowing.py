"""What a history says of its operations of unknown outcome, before anything is searched. Pure.

Values are unique, so an unknown write whose value was shown to somebody did take effect, with the
version that was shown, before the first answer that shows it: it becomes known. Those whose value
nobody saw differ in when they were called and in nothing else; of such alike ones the search need
try only the earliest that is left. Neither changes which histories can be explained.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tests.linearizability.history import Call, Item, Kind, Operation, Outcome, Result

_UNSEEN = "a value nobody saw"
_WRITES = (Kind.CREATE, Kind.UPDATE)


def narrowed(history: Iterable[Operation]) -> list[Operation]:
    """The same history with as much known as follows from it."""
    operations = list(history)
    shown = _first_shown(operations)
    return [_narrow(operation, shown) for operation in operations]


def predecessors(operations: Sequence[Operation]) -> dict[int, int]:
    """Of each unknown operation that has one, by position: the alike one to be placed before it."""
    last: dict[Call, int] = {}
    before: dict[int, int] = {}
    by_time = sorted(range(len(operations)), key=lambda number: operations[number].called_ns)
    for number in by_time:
        operation = operations[number]
        if not operation.is_known:
            if operation.call in last:
                before[number] = last[operation.call]
            last[operation.call] = number
    return before


def _first_shown(operations: Iterable[Operation]) -> dict[tuple[str, str], tuple[int, Item]]:
    """By name and value: when an answer first showed it, and as what."""
    shown: dict[tuple[str, str], tuple[int, Item]] = {}
    for operation in operations:
        if operation.outcome is None or operation.returned_ns is None:
            continue
        for item in operation.outcome.items:
            key = (item.name, item.value)
            if key not in shown or operation.returned_ns < shown[key][0]:
                shown[key] = (operation.returned_ns, item)
    return shown


def _narrow(operation: Operation, shown: dict[tuple[str, str], tuple[int, Item]]) -> Operation:
    call = operation.call
    if operation.is_known or call.kind not in _WRITES:
        return operation
    seen = shown.get((call.name, call.value))
    if seen is None:
        return msgspec.structs.replace(operation, call=msgspec.structs.replace(call, value=_UNSEEN))
    returned_ns, item = seen
    if returned_ns < operation.called_ns:
        return operation  # shown before it was asked for: the search will say so
    outcome = Outcome(Result.OK, (item,))
    return msgspec.structs.replace(operation, outcome=outcome, returned_ns=returned_ns)
