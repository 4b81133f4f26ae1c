"""A rehearsal says what then happens: on random clusters, for random changes, task by task."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from itertools import count

import pytest

from manager.rehearsal.plan import Rehearsal, rehearse
from manager.rehearsal.stage import Build
from shoal.errors import SwarmError
from shoal.model.enums import TaskState
from tests.unit.manager.rehearsal.clusters import (
    Cluster,
    Happened,
    a_cluster,
    some_changes,
    what_happens,
)

SEEDS = int(os.environ.get("SHOAL_REHEARSAL_SEEDS", "100"))


def _rehearsed(cluster: Cluster, builds: Sequence[Build]) -> Rehearsal:
    rehearsal = rehearse(
        cluster.cell.tables,
        builds,
        now_ns=cluster.cell.now_ns,
        ids=(f"new{number:05}" for number in count()),
        is_over=lambda: False,
    )
    assert rehearsal.is_complete
    return rehearsal


def _foretold(rehearsal: Rehearsal) -> Happened:
    outcomes = (*rehearsal.services, *rehearsal.others)
    made = Counter(
        (one.task.service_id, one.task.slot, one.task.node_id, one.task.status.state.name)
        for outcome in outcomes
        for one in outcome.made
    )
    ended = frozenset(one.task.id for outcome in outcomes for one in outcome.ended)
    placed = {task.id: task.node_id for outcome in outcomes for task in outcome.placed}
    return made, ended, placed


def _refusals(rehearsal: Rehearsal) -> list[str]:
    return [one.message if isinstance(one, SwarmError) else "" for one in rehearsal.answers]


def _without_nodes(happened: Happened) -> object:
    made: Counter[tuple[str, int, str]] = Counter()
    for (service_id, slot, _, state), number in happened[0].items():
        made[service_id, slot, state] += number
    return made, happened[1], set(happened[2])


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_rehearsal_equals_what_then_happens(seed: int) -> None:
    cluster = a_cluster(seed, prompt=True)
    builds = some_changes(cluster)
    rows = list(cluster.cell.tables.all_rows())

    rehearsal = _rehearsed(cluster, builds)

    assert list(cluster.cell.tables.all_rows()) == rows, "the store is as it was"
    happened, refusals = what_happens(cluster, builds)
    assert _refusals(rehearsal) == refusals
    assert _foretold(rehearsal) == happened


@pytest.mark.parametrize("seed", range(SEEDS // 4))
def test_in_their_own_time_agents_come_to_the_same_slots(seed: int) -> None:
    """Which node a slot that comes later is given may depend on which agent was faster."""
    cluster = a_cluster(seed, prompt=False)
    builds = some_changes(cluster)
    rehearsal = _rehearsed(cluster, builds)
    happened, refusals = what_happens(cluster, builds)

    assert _refusals(rehearsal) == refusals
    assert _without_nodes(_foretold(rehearsal)) == _without_nodes(happened)


@pytest.mark.parametrize("seed", range(SEEDS // 4))
def test_several_changes_at_once_are_one_plan(seed: int) -> None:
    """Two services that are changed at once race for nodes: compared is the rest."""
    cluster = a_cluster(seed, prompt=True)
    builds = some_changes(cluster, 3)
    rehearsal = _rehearsed(cluster, builds)
    happened, refusals = what_happens(cluster, builds)

    assert _refusals(rehearsal) == refusals
    assert _without_nodes(_foretold(rehearsal)) == _without_nodes(happened)


def test_the_changes_are_of_all_kinds() -> None:
    """So that what is compared above is worth comparing."""
    kinds: Counter[str] = Counter()
    for seed in range(100):
        cluster = a_cluster(seed, prompt=True)
        rehearsal = _rehearsed(cluster, some_changes(cluster))
        outcomes = (*rehearsal.services, *rehearsal.others)
        made = [one for outcome in outcomes for one in outcome.made]
        kinds["makes"] += bool(made)
        kinds["ends"] += any(outcome.ended for outcome in outcomes)
        kinds["replaces"] += any(one.replaces for one in made)
        kinds["rolls"] += any(one.batch > 1 for one in made)
        kinds["waits"] += any(one.task.status.state is TaskState.PENDING for one in made)
        kinds["refused"] += bool(any(_refusals(rehearsal)))
        kinds["nothing"] += not any(outcome.made or outcome.ended for outcome in outcomes)
    least = {"makes": 50, "ends": 40, "replaces": 20, "rolls": 10, "waits": 10, "refused": 2,
             "nothing": 10}  # fmt: skip
    assert all(kinds[kind] >= number for kind, number in least.items()), kinds
