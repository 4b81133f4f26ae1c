"""A plan in the making: changes on top of a view, never more than one transaction may hold.

Planners that feed each other share one draft: each reads what the one before it wrote, and the
changes to one object become one change. Whoever writes several objects that belong together asks
for room first, so that no half of a step is ever committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from manager.store.overlay import Overlay
from manager.store.view import View
from shoal.model.objects import AnyObject
from shoal.model.plan import CHANGES_MAX, Change, Note, Plan, create, remove, update

NOTES_MAX = 100

RowT = TypeVar("RowT", bound=AnyObject)


class Draft:
    """Collects changes, wake-up times and notes; `plan` gives the result."""

    def __init__(self, view: View, *, limit: int = CHANGES_MAX) -> None:
        self.below = view
        self.view = Overlay(view)
        self.more = False
        self.wake_at_ns: int | None = None
        self._limit = limit
        self._touched: set[tuple[type[AnyObject], str]] = set()
        self._notes: list[Note] = []

    def room(self, *rows: AnyObject, new: int = 0) -> bool:
        """Whether all of these objects and `new` ones more can be changed in this round.

        A refusal is remembered: the plan then says that there is more to do.
        """
        fresh = sum((type(row), row.id) not in self._touched for row in rows) + new
        if len(self._touched) + fresh <= self._limit:
            return True
        self.more = True
        return False

    def fitting(self, rows: Sequence[RowT]) -> list[RowT]:
        """Those of the objects, in order, that can all be changed in this round."""
        free = self._limit - len(self._touched)
        fits: list[RowT] = []
        for row in rows:
            fresh = (type(row), row.id) not in self._touched
            if not fresh or free > 0:
                free -= fresh
                fits.append(row)
        self.more |= len(fits) < len(rows)
        return fits

    def create(self, row: AnyObject) -> None:
        """Insert an object."""
        self._put(create(row))

    def update(self, row: AnyObject) -> None:
        """Replace an object."""
        self._put(update(row))

    def remove(self, row: AnyObject) -> None:
        """Take out an object."""
        self._put(remove(row))

    def wake(self, at_ns: int) -> None:
        """Ask to be run again at that wall time, nanoseconds; the earliest wins."""
        if self.wake_at_ns is None or at_ns < self.wake_at_ns:
            self.wake_at_ns = at_ns

    def note(self, event: str, **fields: str) -> None:
        """Leave a line for the log; the first NOTES_MAX are kept."""
        if len(self._notes) < NOTES_MAX:
            self._notes.append(Note(event=event, fields=tuple(fields.items())))

    def changes(self) -> tuple[Change, ...]:
        """One change per object."""
        return self.view.merged()

    def notes(self) -> tuple[Note, ...]:
        """The lines for the log."""
        return tuple(self._notes)

    def plan(self) -> Plan:
        """The result."""
        return Plan(
            changes=self.changes(), wake_at_ns=self.wake_at_ns, notes=self.notes(), more=self.more
        )

    def _put(self, change: Change) -> None:
        self._touched.add((type(change.object), change.object.id))
        self.view.apply((change,))
