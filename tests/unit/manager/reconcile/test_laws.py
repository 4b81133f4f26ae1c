"""The laws every planner keeps, on clusters that were left in the middle of trouble."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manager.allocator import plan as allocator
from manager.orchestrator.global_ import plan as global_
from manager.orchestrator.handover import plan as handover
from manager.orchestrator.jobs import plan as jobs
from manager.orchestrator.reaper import plan as reaper
from manager.orchestrator.rebalance import plan as rebalance
from manager.orchestrator.replicated import plan as replicated
from manager.orchestrator.restart import plan as restart
from manager.orchestrator.update import plan as update
from manager.orchestrator.update import refresh
from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from manager.scheduler import enforcer
from manager.scheduler import plan as scheduler
from manager.store.tables import Tables
from shoal.model.defaults import is_terminal
from shoal.model.enums import ActionKind
from shoal.model.plan import CHANGES_MAX, Plan
from shoal.model.specs import TaskSpec
from shoal.model.types import ResourceRequirements, Resources
from tests.support.planning import Cell, a_node, a_service
from tests.unit.manager.reconcile.simulated import MEMORY, Simulation
from tests.unit.manager.reconcile.simulated_modes import ModesSimulation

Planner = Callable[[Tables, int, Iterator[str]], Plan]


def _of_services(
    plan: Callable[..., Plan],
) -> Planner:
    def run(tables: Tables, now_ns: int, ids: Iterator[str]) -> Plan:
        names: set[str] = {service.id for service in tables.services}
        names.update(task.service_id for task in tables.tasks)
        return plan(tables, names, now_ns=now_ns, ids=ids)

    return run


def _enforce(tables: Tables, now_ns: int, ids: Iterator[str]) -> Plan:
    return enforcer.plan(tables, [node.id for node in tables.nodes], now_ns=now_ns, ids=ids)


def _schedule(tables: Tables, now_ns: int, ids: Iterator[str]) -> Plan:
    return scheduler.plan(tables, now_ns=now_ns, ids=ids)


def _round(tables: Tables, now_ns: int, ids: Iterator[str]) -> Plan:
    return plan_round(tables, EVERYTHING, now_ns=now_ns, ids=ids)


PLANNERS: dict[str, Planner] = {
    "replicated": _of_services(replicated.plan),
    "global": _of_services(global_.plan),
    "jobs": _of_services(jobs.plan),
    "restart": _of_services(restart.plan),
    "handover": _of_services(handover.plan),
    "rebalance": _of_services(rebalance.plan),
    "update": _of_services(update.plan),
    "refresh": _of_services(refresh.plan),
    "reaper": _of_services(reaper.plan),
    "allocator": _of_services(allocator.plan),
    "scheduler": _schedule,
    "enforcer": _enforce,
    "round": _round,
}
# A rollback gets its version when it is stored; what follows from it is seen in the next round.
LATE_ROUNDS = {"update": 2, "round": 3}

each_planner = pytest.mark.parametrize("name", PLANNERS)
clusters = given(seed=st.integers(0, 1 << 32), steps=st.integers(1, 12))
quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def _in_trouble(seed: int, steps: int) -> Cell:
    """A cluster on which more happened since it was last planned."""
    simulation = ModesSimulation(seed) if seed % 2 else Simulation(seed)
    simulation.run(steps)
    simulation.user()
    for _ in range(3):
        simulation.disaster()
        simulation.agents()
    if seed % 3 == 0:
        _rank(simulation.cell, random.Random(seed))
    return simulation.cell


def _rank(cell: Cell, dice: random.Random) -> None:
    """Services become more and less important, and one comes for which full nodes have no room."""
    for service in list(cell.tables.services):
        spec = service.spec.replaced(
            priority=dice.choice([-1, 0, 0, 5]), disruption_budget=dice.choice([None, None, 0, 1])
        )
        cell.put(service.replaced(spec=spec))
    for node in list(cell.tables.nodes):
        used = sum(
            task.spec.resources.reservations.memory_bytes
            for task in cell.tables.tasks_of_node(node.id).values()
            if not is_terminal(task)
        )
        room = node.description.resources.replaced(memory_bytes=used or MEMORY)
        cell.put(node.replaced(description=node.description.replaced(resources=room)))
    wish = ResourceRequirements(reservations=Resources(memory_bytes=MEMORY))
    first = a_service("first", replicas=dice.randint(1, 4), task=TaskSpec(resources=wish))
    cell.put(first.replaced(spec=first.spec.replaced(priority=9)))


def _ids() -> Iterator[str]:
    return (f"new{number:05}" for number in count())


@each_planner
@clusters
@quick
def test_fixpoint(name: str, seed: int, steps: int) -> None:
    cell = _in_trouble(seed, steps)
    ids = _ids()

    plans = cell.settle(lambda tables: PLANNERS[name](tables, cell.now_ns, ids))

    changes = sum(len(done.changes) for done in plans)
    assert len(plans) <= -(-changes // CHANGES_MAX) + 1 + LATE_ROUNDS.get(name, 0)


@each_planner
@clusters
@quick
def test_equal_input_gives_equal_output_in_any_order_of_the_rows(
    name: str, seed: int, steps: int
) -> None:
    cell = _in_trouble(seed, steps)
    rows = list(cell.tables.all_rows())
    random.Random(seed).shuffle(rows)
    shuffled = Tables(rows, version=cell.tables.version)

    first = PLANNERS[name](cell.tables, cell.now_ns, _ids())
    again = PLANNERS[name](cell.tables, cell.now_ns, _ids())
    other = PLANNERS[name](shuffled, cell.now_ns, _ids())

    assert first == again == other


@each_planner
@clusters
@quick
def test_every_change_stands_on_what_was_read(name: str, seed: int, steps: int) -> None:
    cell = _in_trouble(seed, steps)
    done = PLANNERS[name](cell.tables, cell.now_ns, _ids())

    changed = [(type(change.object), change.object.id) for change in done.changes]
    assert len(changed) == len(set(changed)) <= CHANGES_MAX
    for change in done.changes:
        stored = cell.tables.get_same(change.object)
        if change.kind is ActionKind.CREATE:
            assert stored is None
        else:
            assert stored is not None
            assert stored.meta == change.object.meta
            assert stored != change.object or change.kind is ActionKind.REMOVE
    assert done.wake_at_ns is None or done.wake_at_ns > cell.now_ns


@given(services=st.integers(1, 30), replicas=st.integers(0, 60))
@settings(max_examples=25, deadline=None)
def test_bounded_rounds_reach_the_goal(services: int, replicas: int) -> None:
    cell = Cell([a_node(f"n{number}") for number in range(9)])
    cell.put(*(a_service(f"s{number}", replicas=replicas) for number in range(services)))

    plans = cell.settle(
        lambda tables: plan_round(tables, EVERYTHING, now_ns=cell.now_ns, ids=cell.ids)
    )

    assert len(plans) <= -(-(9 + services * replicas) // CHANGES_MAX) + 1
    per_node = [len(cell.tables.tasks_of_node(node.id)) for node in cell.tables.nodes]
    assert sum(per_node) == services * replicas
    assert max(per_node) - min(per_node) <= 1
