from __future__ import annotations

import pytest

from tests.unit.manager.reconcile.simulated import Simulation

SEEDS = 100
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
