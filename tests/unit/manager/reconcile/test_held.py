"""Services that depend on others, in a cluster in trouble: held at first, there in the end."""

from __future__ import annotations

import random

from typing_extensions import override

from manager.orchestrator.gate.plan import is_held
from shoal.model.defaults import is_terminal, is_wanted
from shoal.model.enums import DependencyCondition
from shoal.model.objects import Service, Task
from shoal.model.types import ServiceDependency
from tests.unit.manager.reconcile.simulated import Simulation

SEEDS = 20


class HeldSimulation(Simulation):
    """Users also say what depends on what; never in a cycle: only on those before by name."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.wishes = random.Random(seed)
        self.ever_held: set[str] = set()

    @override
    def user(self) -> None:
        super().user()
        services = sorted(self.cell.tables.services, key=lambda row: row.id)
        for place, service in enumerate(services):
            if place and self.wishes.random() < 0.5 and not service.spec.depends_on:
                other = self.wishes.choice(services[:place]).spec.annotations.name
                condition = self.wishes.choice(
                    [DependencyCondition.STARTED, DependencyCondition.HEALTHY]
                )
                wish = ServiceDependency(service=other, condition=condition)
                self.cell.put(service.replaced(spec=service.spec.replaced(depends_on=(wish,))))

    @override
    def check(self) -> None:
        super().check()
        for service in self.cell.tables.services:
            if is_held(self.cell.tables, service):
                self.ever_held.add(service.id)

    @override
    def _check_service(self, service: Service) -> None:
        """One that is held to the end depends, in the end, on work that failed for good."""
        if not is_held(self.cell.tables, service):
            super()._check_service(service)
            return
        left = [self.cell.tables.services.by_name(one.service) for one in service.spec.depends_on]
        assert any(
            one is not None and (is_held(self.cell.tables, one) or self._has_given_up(one))
            for one in left
        ), service.id

    def _has_given_up(self, service: Service) -> bool:
        last: dict[int, Task] = {task.slot: task for task in self.cell.tasks(service.id)}
        return any(is_terminal(task) and not is_wanted(task) for task in last.values())


def test_all_are_there_in_the_end() -> None:
    held = 0
    for seed in range(SEEDS):
        simulation = HeldSimulation(seed)
        simulation.run(steps=20)
        simulation.heal()
        simulation.check_goal()
        held += len(simulation.ever_held)
    assert held > SEEDS
