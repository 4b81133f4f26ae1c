from __future__ import annotations

import os

import pytest

from shoal.model.enums import TaskState, UpdateState
from shoal.model.objects import Task
from shoal.model.specs import ContainerSpec, TaskSpec
from shoal.model.types import NetworkAttachmentConfig, UpdateConfig
from tests.support.planning import a_network, a_service
from tests.unit.manager.reconcile.simulated import Simulation
from tests.unit.manager.reconcile.simulated_changes import ChangesSimulation
from tests.unit.manager.reconcile.simulated_modes import ModesSimulation

SEEDS = 100
MODES_SEEDS = int(os.environ.get("SHOAL_SIMULATION_SEEDS", "60"))
CHANGES_SEEDS = int(os.environ.get("SHOAL_SIMULATION_SEEDS", "30"))
WAITS_FOR_A_PORT = 11261
"""Here an automatic rollback wants a port back that another service has taken meanwhile."""
COMES_BACK_TO_A_TASK = 20292
"""Here a slot returns to a task that ran all the time, and what was to replace it is let go."""


@pytest.mark.parametrize("seed", [*range(SEEDS), WAITS_FOR_A_PORT, COMES_BACK_TO_A_TASK])
def test_a_cluster_in_trouble_keeps_its_promises_and_recovers(seed: int) -> None:
    simulation = Simulation(seed)
    simulation.run(steps=25)
    simulation.heal()
    simulation.check_goal()


@pytest.mark.parametrize("seed", range(MODES_SEEDS))
def test_global_services_and_jobs_keep_their_promises_and_recover(seed: int) -> None:
    simulation = ModesSimulation(seed)
    simulation.run(steps=25)
    simulation.heal()
    simulation.check_goal()


@pytest.mark.parametrize("seed", range(CHANGES_SEEDS))
def test_updates_that_hang_or_are_halted_and_revisions_keep_their_promises(seed: int) -> None:
    simulation = ChangesSimulation(seed)
    simulation.run(steps=25)
    simulation.heal()
    simulation.check_goal()


def test_a_rolling_update_goes_on_in_a_network_without_a_free_address() -> None:
    """Each new task takes the address of the one that it replaces."""
    simulation = Simulation(0)
    simulation.trouble = False
    cell = simulation.cell
    cell.put(a_network("net", "10.1.0.0/29"))  # for the service's address and four tasks

    def task(image: str) -> TaskSpec:
        runtime = ContainerSpec(image=image)
        return TaskSpec(runtime=runtime, networks=(NetworkAttachmentConfig("net"),))

    def live() -> list[Task]:
        simulation.plan()
        simulation.agents()
        cell.advance(1)
        return [one for one in cell.tasks("web") if one.status.state is TaskState.RUNNING]

    update = UpdateConfig(parallelism=2, monitor_ns=1)
    cell.put(a_service("web", replicas=4, task=task("a:1"), update=update))
    assert any(len(live()) == 4 for _ in range(200))
    service = cell.service("web")
    cell.put(service.replaced(spec=service.spec.replaced(task=task("a:2"))))

    assert any([one.container.image for one in live()] == ["a:2"] * 4 for _ in range(200))
    status = cell.service("web").update_status
    assert status is not None
    assert status.state in {UpdateState.UPDATING, UpdateState.COMPLETED}


def test_a_rolling_update_keeps_the_addresses_of_the_replicas() -> None:
    """Each new task waits for the address of the one that it replaces, and nothing else does."""
    simulation = Simulation(0)
    simulation.trouble = False
    cell = simulation.cell
    cell.put(a_network("net", "10.1.0.0/28"))
    chosen = tuple(f"10.1.0.{number}" for number in (12, 9, 10, 11))

    def task(image: str) -> TaskSpec:
        wishes = (NetworkAttachmentConfig("net", addresses=chosen),)
        return TaskSpec(runtime=ContainerSpec(image=image), networks=wishes)

    def addresses(image: str) -> dict[int, str]:
        simulation.plan()
        simulation.agents()
        cell.advance(1)
        return {
            one.slot: one.networks[0].addresses[0].partition("/")[0]
            for one in cell.tasks("web")
            if one.status.state is TaskState.RUNNING and one.container.image == image
        }

    wanted = dict(enumerate(chosen, 1))
    update = UpdateConfig(parallelism=2, monitor_ns=1)
    cell.put(a_service("web", replicas=4, task=task("a:1"), update=update))
    assert any(addresses("a:1") == wanted for _ in range(200))
    service = cell.service("web")
    cell.put(service.replaced(spec=service.spec.replaced(task=task("a:2"))))
    assert any(addresses("a:2") == wanted for _ in range(200))
