"""What a planner returns: changes to commit, when to look again, and what to tell the log.

A planner is a pure function of a view and a time. It proposes at most CHANGES_MAX changes a round;
what is left is found again in the next one.
"""

from __future__ import annotations

from shoal.model.enums import ActionKind
from shoal.model.objects import AnyObject
from shoal.model.row import Row

CHANGES_MAX = 200
"""Changes in one transaction; the same bound as Swarm's."""


class Change(Row, frozen=True):
    """One change to one object, against the version the planner saw.

    CREATE: an object with a new id. UPDATE, REMOVE: `object.meta.version` is the version that was
    read; the commit is refused (SequenceConflict) when the store has another one by then.
    """

    kind: ActionKind
    object: AnyObject


class Note(Row, frozen=True):
    """A line for the log: planners do not log."""

    event: str
    fields: tuple[tuple[str, str], ...] = ()


class Plan(Row, frozen=True):
    """Result of a planner. `wake_at_ns`: wall time at which planning again may give more."""

    changes: tuple[Change, ...] = ()
    wake_at_ns: int | None = None
    notes: tuple[Note, ...] = ()
    more: bool = False
    """The bound was reached: plan again at once after the commit."""


def create(row: AnyObject) -> Change:
    """Insert a new object."""
    return Change(kind=ActionKind.CREATE, object=row)


def update(row: AnyObject) -> Change:
    """Replace an object that is at the version in its meta."""
    return Change(kind=ActionKind.UPDATE, object=row)


def remove(row: AnyObject) -> Change:
    """Take out an object that is at the version in its meta."""
    return Change(kind=ActionKind.REMOVE, object=row)
