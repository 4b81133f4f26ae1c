"""From the answers of a watch to revisions: whole, in order, each once. No I/O.

etcd may split an answer into fragments, and may put many revisions into one. All events of one
transaction carry its revision and stay together here; a revision that would come twice or too late
is refused, because a watch that lies must not be followed.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from manager.etcd.errors import Compacted
from shoal.errors import Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb

EVENTS_MAX = 100_000
"""Events of one answer, all fragments together: no server sends as many."""


class Revision(NamedTuple):
    """All events of one revision, in the order of the transaction; none: nothing up to here."""

    revision: int
    events: tuple[pb.Event, ...]


class WatchBroken(Unavailable):
    """The server ended the watch, or what it sent cannot be right: watch again."""


class Assembler:
    """Takes the answers of one watch one by one."""

    def __init__(self, start_revision: int) -> None:
        self._next = start_revision
        self._events: list[pb.Event] = []

    def take(self, answer: pb.WatchResponse) -> list[Revision]:
        """The revisions that the answer completes.

        Raises: Compacted when the start is gone; WatchBroken when the server ended the watch or
        went back in time.
        """
        if answer.canceled:
            if answer.compact_revision:
                raise Compacted(
                    f"etcd: watch from revision {self._next}: compacted up to "
                    f"{answer.compact_revision}: read the state again"
                )
            raise WatchBroken(f"etcd: the watch was ended: {answer.cancel_reason or 'no reason'}")
        self._events.extend(answer.events)
        if len(self._events) > EVENTS_MAX:
            raise WatchBroken(f"etcd: more than {EVENTS_MAX} events in one answer")
        if answer.fragment or answer.created:
            return []
        events, self._events = self._events, []
        if not events:
            return [Revision(answer.header.revision, ())]
        return [
            self._revision(revision, tuple(group))
            for revision, group in groupby(events, key=lambda event: event.kv.mod_revision)
        ]

    def _revision(self, revision: int, events: tuple[pb.Event, ...]) -> Revision:
        if revision < self._next:
            raise WatchBroken(f"etcd: revision {revision} after {self._next - 1}")
        self._next = revision + 1
        return Revision(revision, events)
