"""What changes would do: `rehearse`.

Pure: a copy of the store, the changes and a time in; services, tasks, refusals out. The planners
that decide here are the leader's own (`manager.reconcile.plan`), so there is no second opinion on
what an update does. What would have come to pass without the changes as well is left out, found by
a second rehearsal without them where services are concerned that nobody asked to change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from manager.rehearsal.outcome import Recorder, ServiceOutcome
from manager.rehearsal.stage import Build, Stage
from manager.store.tables import Tables
from shoal.errors import SwarmError
from shoal.model.objects import Service


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What the changes would do, if nothing fails and nobody else changes anything.

    answers: for each change the id of the service that it is about ("" for other objects), or why
    it would be refused; the others are rehearsed all the same. services: those that were asked to
    change, in the order of the changes. others: whose tasks are made or stopped on account of that.
    end: the store then. waited_ns: delays and monitoring until then. is_complete: False when it
    was broken off: the end is not reached, and others may be missing.
    """

    answers: tuple[str | SwarmError, ...]
    services: tuple[ServiceOutcome, ...]
    others: tuple[ServiceOutcome, ...]
    end: Tables
    end_ns: int
    waited_ns: int
    is_complete: bool


def rehearse(
    tables: Tables,
    builds: Sequence[Build],
    *,
    now_ns: int,
    ids: Iterator[str],
    is_over: Callable[[], bool],
) -> Rehearsal:
    """Make the changes one after the other, then let the cluster come to rest.

    tables: stay as they are. ids: for new tasks. is_over: no more rounds are planned when it says
    so; it is asked often.
    """
    recorder = Recorder()
    stage = Stage(tables.copy(), now_ns=now_ns, ids=ids, audience=recorder.note, is_over=is_over)
    answers = tuple(_written(stage, build) for build in builds)
    asked = tuple(dict.fromkeys(one for one in answers if isinstance(one, str) and one))
    wishes = {service_id: stage.tables.services.get(service_id) for service_id in asked}
    if asked:
        stage.play(asked)
    outcomes = recorder.outcomes(stage.tables)
    others = {
        service_id: outcome
        for service_id, outcome in outcomes.items()
        if service_id not in asked and (outcome.made or outcome.ended or outcome.placed)
    }
    is_complete = stage.is_complete
    if others and is_complete:
        anyway, is_complete = _without(
            tables, until_ns=stage.now_ns, now_ns=now_ns, ids=ids, is_over=is_over
        )
        others = {
            service_id: outcome
            for service_id, outcome in others.items()
            if service_id not in anyway or anyway[service_id].effects != outcome.effects
        }
    return Rehearsal(
        answers=answers,
        services=tuple(
            outcomes[service_id].replaced(asked=wish) for service_id, wish in wishes.items()
        ),
        others=tuple(others.values()) if is_complete else (),
        end=stage.tables,
        end_ns=stage.now_ns,
        waited_ns=stage.waited_ns,
        is_complete=is_complete,
    )


def _without(
    tables: Tables, *, until_ns: int, now_ns: int, ids: Iterator[str], is_over: Callable[[], bool]
) -> tuple[dict[str, ServiceOutcome], bool]:
    """What comes to pass by then without any change, and whether that was found out."""
    recorder = Recorder()
    stage = Stage(tables.copy(), now_ns=now_ns, ids=ids, audience=recorder.note, is_over=is_over)
    stage.play((), until_ns=until_ns)
    return recorder.outcomes(stage.tables), stage.is_complete


def _written(stage: Stage, build: Build) -> str | SwarmError:
    try:
        commit = stage.write(build)
    except SwarmError as refused:
        return refused
    rows = [event.subject for event in commit.events]
    return next((row.id for row in rows if isinstance(row, Service)), "")
