"""The same random transactions against etcd, the embedded apply, and a dict that cannot be wrong.

Two stores over one etcd take turns without waiting for each other's mirror, so most transactions
are decided by a mirror that lags. Whatever they answer, rows and texts, the tables of the embedded
log answer alike at the same version.
"""

from __future__ import annotations

import random

import pytest

from manager.store.apply import Commit, apply_entry
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.errors import SequenceConflict, SwarmError
from shoal.model.enums import ActionKind
from shoal.model.objects import AnyObject, Network, Node, Service, StoreAction, StoreEntry, Task
from shoal.model.specs import NetworkSpec, ReplicatedMode, ServiceSpec, TaskSpec
from shoal.model.types import Annotations, NodeDescription
from tests.support.etcd import Etcd, etcd_store, needs_etcd
from tests.unit.manager.store.test_model import IDS, KINDS, NAMES, Model, check_same

pytestmark = [pytest.mark.etcd, needs_etcd]

TURNS = 400
CHANGES = (ActionKind.CREATE, ActionKind.UPDATE, ActionKind.REMOVE)


def a_row(dice: random.Random) -> AnyObject:
    row_id, name, number = dice.choice(IDS), dice.choice(NAMES), dice.randrange(3)
    kind = dice.choice(list(KINDS))
    if kind is Node:
        return Node(id=row_id, description=NodeDescription(hostname=name))
    if kind is Network:
        return Network(id=row_id, spec=NetworkSpec(annotations=Annotations(name=name)))
    if kind is Service:
        spec = ServiceSpec(
            annotations=Annotations(name=name),
            task=TaskSpec(force_update=number),
            mode=ReplicatedMode(replicas=dice.randrange(3)),
        )
        return Service(id=row_id, spec=spec)
    return Task(
        id=row_id,
        service_id=dice.choice(["", "s1", "s2"]),
        node_id=dice.choice(["", "n1", "n2"]),
        slot=number,
    )


def an_entry(dice: random.Random, tables: Tables, now_ns: int) -> StoreEntry:
    actions = []
    for _ in range(dice.choice([1, 1, 2, 3, 4])):
        row = a_row(dice)
        held = tables.get_same(row)
        version = 0 if held is None else held.meta.version.index
        kind = dice.choice(CHANGES)
        if kind is ActionKind.CREATE and held is not None and dice.random() < 0.8:
            kind = ActionKind.UPDATE
        expected = dice.choice([0, version, version, version, max(0, version - 1)])
        actions.append(StoreAction(kind=kind, object=row, expected_version=expected))
    return StoreEntry(actions=tuple(actions), proposed_at_ns=now_ns)


async def answer(store: Store, entry: StoreEntry) -> Commit | SwarmError:
    try:
        return await store._proposer.propose(entry)
    except SwarmError as refused:
        return refused


def expected_answer(tables: Tables, entry: StoreEntry, version: int) -> Commit | SwarmError:
    try:
        return apply_entry(tables, entry, version)
    except SwarmError as refused:
        return refused


def check_answers(
    mine: Commit | SwarmError, theirs: Commit | SwarmError, entry: StoreEntry
) -> None:
    keys = [(type(action.object), action.object.id) for action in entry.actions]
    once = len(set(keys)) == len(keys)
    assert type(mine) is type(theirs), (mine, theirs, entry)
    if isinstance(mine, SwarmError) and isinstance(theirs, SwarmError):
        if once or not isinstance(mine, SequenceConflict):
            assert mine.message == theirs.message
    elif isinstance(mine, Commit) and isinstance(theirs, Commit) and once:
        # An object that changes twice has one event here, and two there.
        assert mine.events == theirs.events


@pytest.mark.parametrize("seed", range(4))
async def test_etcd_answers_as_the_embedded_log_does(server: Etcd, prefix: str, seed: int):
    dice = random.Random(seed)
    tables, model = Tables(), Model()
    counts: dict[str, int] = {}
    url = server.url(f"{prefix}/differential")
    async with etcd_store(url) as (one, _), etcd_store(url) as (two, _):
        for turn in range(TURNS):
            store = dice.choice([one, two])
            entry = an_entry(dice, tables, now_ns=turn + 1)
            mine = await answer(store, entry)
            # Refused entries have no revision of their own: any version will do for the others.
            version = mine.version if isinstance(mine, Commit) else tables.version + 1
            theirs = expected_answer(tables, entry, version)
            check_answers(mine, theirs, entry)
            kind = model.apply(entry, version)
            assert kind is (None if isinstance(mine, Commit) else type(mine)), entry
            check_same(store.view, model.rows)
            counts[type(mine).__name__] = counts.get(type(mine).__name__, 0) + 1
        for store in (one, two):
            await store._proposer.barrier()
            check_same(store.view, model.rows)
    async with etcd_store(url) as (fresh, _):
        check_same(fresh.view, model.rows)
    wanted = {"Commit", "SequenceConflict", "NotFound", "AlreadyExists", "NameConflict"}
    assert set(counts) >= wanted, counts
    assert min(counts[one] for one in wanted) >= 5, counts
