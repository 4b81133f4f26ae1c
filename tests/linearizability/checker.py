"""Is there an order of these operations that explains every answer? Pure.

Wing and Gong's search with Lowe's memory of configurations (which operations are placed, and the
state they lead to), over a linked list of calls and returns. Histories of groups of names that no
operation mixes are judged apart. Operations without an outcome may be placed anywhere after their
call, or nowhere: they are tried when no known one fits. Exact: a verdict is never a guess. When the
budget is used up it says so, and that is not a pass.

Sources: Wing, Gong, "Testing and Verifying Concurrent Objects" (1993); Lowe, "Testing for
linearizability" (2017); Horn, Kroening, "Faster linearizability checking via P-compositionality"
(2015).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from typing_extensions import override

from tests.linearizability.history import Operation, by_group
from tests.linearizability.model import Model, ServiceModel, State
from tests.linearizability.narrowing import narrowed, predecessors

STEPS_MAX = 5_000_000
"""Attempts to place an operation, all groups together; about half a minute."""


class Undecided(Exception):
    """The search was given up; nothing is known about the history."""


class Violation(msgspec.Struct, frozen=True):
    """A history nobody can explain.

    placed: the longest explanation found; state: where it leads; stuck: the operation that has
    returned by then and fits nowhere.
    """

    group: str
    placed: tuple[Operation, ...]
    stuck: Operation
    state: State

    @override
    def __str__(self) -> str:
        last = "\n".join(f"  {operation}" for operation in self.placed[-8:])
        slots = ", ".join(f"{name}: {slot}" for name, slot in self.state) or "empty"
        return (
            f"group {self.group}: {len(self.placed)} operations can be ordered, ending with\n"
            f"{last}\n  state: {slots}\nbut then no place is left for\n  {self.stuck}"
        )


class Verdict(msgspec.Struct, frozen=True):
    """The first violation found, if any, and the work it took."""

    violation: Violation | None
    steps: int
    operations: int
    unknown: int

    @property
    def ok(self) -> bool:
        """Whether the history is linearizable."""
        return self.violation is None


class _Event:
    """A call or, with `call` set, the return that belongs to it; linked in the order of time."""

    __slots__ = ("after", "bit", "call", "following", "operation", "preceding", "returned")

    def __init__(self, operation: Operation | None, bit: int) -> None:
        self.operation = operation
        self.bit = bit
        self.after = 0
        """Of which operation the placing must have come first, as its bit."""
        self.call: _Event | None = None
        self.returned: _Event | None = None
        self.preceding: _Event | None = None
        self.following: _Event | None = None

    def take_out(self) -> None:
        """Unlink it; its own links remember where it was."""
        assert self.preceding is not None
        self.preceding.following = self.following
        if self.following is not None:
            self.following.preceding = self.preceding

    def put_back(self) -> None:
        """Undo the last `take_out`."""
        assert self.preceding is not None
        self.preceding.following = self
        if self.following is not None:
            self.following.preceding = self


class Budget:
    """Counts steps over several searches."""

    def __init__(self, steps_max: int) -> None:
        self.steps = 0
        self._steps_max = steps_max

    def spend(self) -> None:
        """One more. Raises: Undecided."""
        self.steps += 1
        if self.steps > self._steps_max:
            raise Undecided(f"no verdict after {self._steps_max} steps")


def check(
    history: Iterable[Operation], model: Model | None = None, *, steps_max: int = STEPS_MAX
) -> Verdict:
    """Judge a history. Raises: Undecided when `steps_max` did not suffice."""
    budget = Budget(steps_max)
    known = unknown = 0
    violation = None
    for group, operations in sorted(by_group(history).items()):
        unknown += sum(not operation.is_known for operation in operations)
        known += sum(operation.is_known for operation in operations)
        known_more = narrowed(operations)
        found = _Search(group, known_more, model or ServiceModel(), budget).run()
        violation = violation or found
    return Verdict(violation, budget.steps, known + unknown, unknown)


class _Search:
    """One group. Placed operations are on a stack; backtracking takes the last one off."""

    def __init__(
        self, group: str, operations: Sequence[Operation], model: Model, budget: Budget
    ) -> None:
        self._group = group
        self._model = model
        self._budget = budget
        self._head = _linked(operations)
        self._open = sum(operation.is_known for operation in operations)
        self._mask = 0
        self._state = model.initial
        self._stack: list[tuple[_Event, State]] = []
        self._seen: set[tuple[int, State]] = {(0, model.initial)}
        self._deepest: Violation | None = None

    def run(self) -> Violation | None:
        """Search to the end. Raises: Undecided."""
        event, trying_unknown = self._head.following, False
        while self._open:
            # A known call that is not placed has its return ahead: the list cannot end before it.
            assert event is not None
            if event.call is None:
                is_unknown = event.returned is None
                if is_unknown is trying_unknown and self._place(event):
                    event, trying_unknown = self._head.following, False
                else:
                    event = event.following
            elif not trying_unknown:
                event, trying_unknown = self._head.following, True
            else:
                self._remember(event.call)
                if not self._stack:
                    return self._deepest
                event, trying_unknown = self._withdraw()
        return None

    def _place(self, call: _Event) -> bool:
        if call.after & ~self._mask:
            return False
        self._budget.spend()
        assert call.operation is not None
        state = self._model.step(self._state, call.operation)
        if state is None:
            return False
        configuration = (self._mask | call.bit, state)
        if configuration in self._seen:
            return False
        self._seen.add(configuration)
        self._stack.append((call, self._state))
        self._mask, self._state = configuration
        call.take_out()
        if call.returned is not None:
            call.returned.take_out()
            self._open -= 1
        return True

    def _withdraw(self) -> tuple[_Event | None, bool]:
        """Undo the last placement. Result: where to go on looking, and whether for unknown ones."""
        call, self._state = self._stack.pop()
        self._mask &= ~call.bit
        if call.returned is not None:
            call.returned.put_back()
            self._open += 1
        call.put_back()
        return call.following, call.returned is None

    def _remember(self, stuck: _Event) -> None:
        if self._deepest is not None and len(self._stack) <= len(self._deepest.placed):
            return
        placed = tuple(call.operation for call, _ in self._stack if call.operation is not None)
        assert stuck.operation is not None
        self._deepest = Violation(self._group, placed, stuck.operation, self._state)


def _linked(operations: Sequence[Operation]) -> _Event:
    """Events in the order of time after an empty head; of equal times, calls come first."""
    events: list[tuple[int, int, int, _Event]] = []
    before = predecessors(operations)
    for number, operation in enumerate(operations):
        call = _Event(operation, 1 << number)
        if number in before:
            call.after = 1 << before[number]
        events.append((operation.called_ns, 0, number, call))
        if operation.returned_ns is not None:
            call.returned = _Event(None, 0)
            call.returned.call = call
            events.append((operation.returned_ns, 1, number, call.returned))
    head = last = _Event(None, 0)
    for *_, event in sorted(events, key=lambda entry: entry[:3]):
        last.following, event.preceding = event, last
        last = event
    return head
