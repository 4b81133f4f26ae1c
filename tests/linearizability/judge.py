"""Everything that is claimed of a run, judged from its records. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from tests.linearizability.checker import STEPS_MAX, check
from tests.linearizability.clients import KEEP
from tests.linearizability.history import Item, Operation, acknowledged
from tests.linearizability.watching import Session, complaints


class Findings(msgspec.Struct, frozen=True):
    """faults: what must not be; the numbers say how much was tried."""

    faults: tuple[str, ...]
    operations: int
    unknown: int
    steps: int
    kept: int
    commits_watched: int
    sessions: int


def judge(
    history: Sequence[Operation],
    present: Iterable[Item],
    sessions: Sequence[Session] = (),
    *,
    steps_max: int = STEPS_MAX,
) -> Findings:
    """present: the names that are only created, as the cluster shows them at the end.

    Raises: Undecided.
    """
    verdict = check(history, steps_max=steps_max)
    written = acknowledged(history)
    kept = [item for item in written.values() if item.name.startswith(f"{KEEP}-")]
    faults = [] if verdict.violation is None else [str(verdict.violation)]
    faults += _gone(kept, present)
    faults += complaints(sessions, written.values())
    return Findings(
        faults=tuple(faults),
        operations=verdict.operations,
        unknown=verdict.unknown,
        steps=verdict.steps,
        kept=len(kept),
        commits_watched=sum(len(session.messages) for session in sessions),
        sessions=len(sessions),
    )


def _gone(kept: Iterable[Item], present: Iterable[Item]) -> list[str]:
    found = {item.name: item for item in present}
    faults = []
    for item in kept:
        last = found.get(item.name)
        if last is None:
            faults.append(f"{item.name} was created at version {item.version} and is gone")
        elif last != item:
            faults.append(f"{item.name} was created as {item} and is now {last}")
    return faults
