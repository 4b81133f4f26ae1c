"""The clients against a correct cluster in memory, and against each planted bug."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.linearizability.bugs import BUGS
from tests.linearizability.clients import Client, Recorder, Workload, read_all
from tests.linearizability.history import Operation
from tests.linearizability.judge import judge
from tests.linearizability.memory import MemoryService
from tests.linearizability.service import Service

WORKLOAD = Workload(clients=6, pause_s=0.002)
OPERATIONS = 600
DEADLINE_S = 30.0


async def run(*services: Service, operations: int = OPERATIONS) -> list[Operation]:
    recorder = Recorder()
    end_s = time.monotonic() + DEADLINE_S

    def stopping() -> bool:
        return len(recorder.history) >= operations or time.monotonic() > end_s

    clients = [
        Client(number, services, recorder, WORKLOAD, seed=3) for number in range(WORKLOAD.clients)
    ]
    await asyncio.gather(*(client.run(stopping) for client in clients))
    await read_all(services, recorder, deadline_s=DEADLINE_S)
    assert len(recorder.history) > operations
    return recorder.history


async def test_a_correct_cluster_passes():
    cluster = MemoryService(seed=3)
    findings = judge(await run(cluster, cluster), cluster.items.values())
    assert findings.faults == ()
    assert findings.unknown > 5
    assert findings.kept > 20


@pytest.mark.parametrize("bug", BUGS)
async def test_each_planted_bug_is_found(bug):
    cluster = MemoryService(seed=3, lost_answer_percent=0)
    history = await run(cluster, BUGS[bug](cluster), operations=400)
    assert judge(history, cluster.items.values()).faults


async def test_a_lost_creation_of_what_is_only_written_once_is_found():
    cluster = MemoryService(seed=3)
    history = await run(cluster, operations=200)
    left = [item for name, item in cluster.items.items() if name.startswith("keep-")]
    (fault,) = judge(history, left[1:]).faults
    assert fault == f"{left[0].name} was created at version {left[0].version} and is gone"
