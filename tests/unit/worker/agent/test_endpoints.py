"""The applier: newest version wins, acknowledged only when in force, retried."""

from __future__ import annotations

import asyncio

import pytest

from shoal.errors import InvalidArgument, Unavailable
from tests.unit.worker.agent.support import until
from worker.agent import endpoints
from worker.agent.endpoints import EndpointApplier

TAKEN = {("tcp", 8080): "port 8080/tcp is in use by another process on this node"}


class Plane:
    def __init__(self):
        self.applied = 0
        self.results = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def apply(self):
        self.applied += 1
        await self.gate.wait()
        result = self.results.pop(0) if self.results else {}
        if isinstance(result, Exception):
            raise result
        return result


class Manager:
    def __init__(self):
        self.acknowledged = []
        self.error = None

    async def acknowledge(self, version, errors):
        self.acknowledged.append((version, errors))
        if self.error:
            raise self.error


@pytest.fixture
async def running(monkeypatch):
    monkeypatch.setattr(endpoints, "PORT_RETRY_S", 0.002)
    monkeypatch.setattr(endpoints, "APPLY_RETRY_S", 0.002)
    plane, manager = Plane(), Manager()
    applier = EndpointApplier(plane.apply)
    work = asyncio.create_task(applier.run(manager.acknowledge))
    yield applier, plane, manager, work
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


async def test_versions_that_arrive_meanwhile_are_merged(running):
    applier, plane, manager, _ = running
    plane.gate.clear()
    applier.want(1)
    await until(lambda: plane.applied == 1)
    for version in range(2, 50):
        applier.want(version)
    plane.gate.set()
    await until(lambda: manager.acknowledged[-1:] == [(49, {})])
    assert manager.acknowledged == [(1, {}), (49, {})]
    assert plane.applied == 2


async def test_the_same_version_is_applied_once(running):
    applier, plane, manager, _ = running
    for _ in range(3):
        applier.want(4)
    await until(lambda: manager.acknowledged)
    for _ in range(5):
        applier.want(4)
        await asyncio.sleep(0)
    assert plane.applied == 1


async def test_ports_in_use_are_reported_once_and_retried_until_free(running):
    applier, plane, manager, _ = running
    plane.results = [TAKEN, TAKEN, TAKEN]
    applier.want(1)
    await until(lambda: len(manager.acknowledged) == 2)
    assert manager.acknowledged == [(1, TAKEN), (1, {})]
    assert plane.applied == 4
    applied = plane.applied
    for _ in range(10):
        await asyncio.sleep(0.002)
    assert plane.applied == applied, "no retry without a reason"


async def test_what_depends_on_the_machine_is_looked_at_again(running):
    applier, plane, manager, _ = running
    applier._looks_again = lambda: plane.applied < 4
    applier.want(1)
    await until(lambda: plane.applied == 4)
    assert manager.acknowledged == [(1, {})], "said once"


async def test_what_is_not_in_force_is_not_acknowledged(running):
    applier, plane, manager, _ = running
    plane.results = [InvalidArgument("peers contradict"), OSError(5, "netlink"), Unavailable("x")]
    plane.gate.clear()
    applier.want(7)
    await until(lambda: plane.applied)
    assert manager.acknowledged == []
    plane.gate.set()
    await until(lambda: manager.acknowledged)
    assert manager.acknowledged == [(7, {})]
    assert plane.applied == 4
    assert applier.problem == ""


async def test_the_reason_is_shown_while_it_lasts(running, monkeypatch):
    monkeypatch.setattr(endpoints, "APPLY_RETRY_S", 60.0)
    applier, plane, manager, _ = running
    plane.results = [InvalidArgument("peers contradict")]
    applier.want(7)
    await until(lambda: applier.problem)
    assert applier.problem == "endpoints version 7 is not applied: peers contradict"
    applier.want(8)
    await until(lambda: manager.acknowledged == [(8, {})])
    assert applier.problem == ""


async def test_a_manager_that_goes_ends_the_run(running):
    applier, _, manager, work = running
    manager.error = Unavailable("gone")
    applier.want(1)
    with pytest.raises(Unavailable):
        await work


async def test_a_new_session_starts_over(running):
    applier, _, manager, work = running
    applier.want(5)
    await until(lambda: manager.acknowledged)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    applier.begin()
    again = asyncio.create_task(applier.run(manager.acknowledge))
    try:
        applier.want(5)
        await until(lambda: manager.acknowledged == [(5, {}), (5, {})])
    finally:
        again.cancel()
        await asyncio.gather(again, return_exceptions=True)
