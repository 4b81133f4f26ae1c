"""Keys of encrypted networks, from what the managers ask to what they are told."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from shoal.errors import FailedPrecondition
from tests.unit.worker.agent.support import until
from worker.agent import network_keys as module
from worker.agent.network_keys import NetworkKeyKeeper
from worker.network.keys import KeyFile, PrivateKeys


class Plane:
    def __init__(self):
        self.used = []
        self.failures = []
        self.looks = 0
        self.settled_after = 0

    async def use_keys(self, keys):
        if self.failures:
            raise self.failures.pop(0)
        self.used.append(keys)

    async def settle(self):
        self.looks += 1
        return self.looks > self.settled_after


@contextlib.asynccontextmanager
async def running(keeper, *more):
    tasks = [asyncio.create_task(work) for work in (keeper.run(), *more)]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "TURN_S", 0.005)


def generations(keys):
    return [key.generation for key in keys]


async def test_a_key_is_on_disk_then_in_force_then_told(tmp_path):
    file, plane, told = KeyFile(tmp_path), Plane(), []
    keeper = NetworkKeyKeeper(file, file.load(), plane)
    assert generations(keeper.public) == [0]

    async def send(keys):
        assert dict(plane.used[-1].public) == {key.generation: key.public_key for key in keys}
        assert KeyFile(tmp_path).load() == plane.used[-1]
        told.append(generations(keys))

    async with running(keeper, keeper.report(keeper.public, send)):
        keeper.want(0)
        for generation in (1, 2):
            keeper.want(generation)
            await until(lambda expected=generation: told and told[-1][-1] == expected)
    assert told == [[0, 1], [1, 2]]


async def test_a_manager_that_does_not_know_a_key_is_told_with_the_session(tmp_path):
    file, told = KeyFile(tmp_path), []
    keeper = NetworkKeyKeeper(file, file.load(), Plane())

    async def send(keys):
        told.append(generations(keys))

    async with running(keeper, keeper.report((), send)):
        await until(lambda: told)
    assert told == [[0]]


async def test_what_fails_is_said_and_tried_again(tmp_path):
    file, plane = KeyFile(tmp_path), Plane()
    keeper = NetworkKeyKeeper(file, file.load(), plane)
    plane.failures = [FailedPrecondition("port 7791/udp is in use"), OSError(28, "full")]
    seen = []

    async def watch():
        while True:
            seen.append(keeper.problem)
            await asyncio.sleep(0)

    async with running(keeper, watch()):
        keeper.want(1)
        await until(lambda: plane.used and not keeper.problem)
    assert generations(keeper.public) == [0, 1]
    assert any("port 7791/udp is in use" in problem for problem in seen)


async def test_peers_are_looked_at_until_they_are_moved_and_after_each_change(tmp_path):
    file, plane = KeyFile(tmp_path), Plane()
    plane.settled_after = 3
    keeper = NetworkKeyKeeper(file, file.load(), plane)
    async with running(keeper):
        await until(lambda: plane.looks == 4)
        await asyncio.sleep(0.05)
        assert plane.looks == 4
        keeper.look()
        await until(lambda: plane.looks == 5)


async def test_a_node_that_cannot_encrypt_never_gets_keys(tmp_path):
    plane = Plane()
    keeper = NetworkKeyKeeper(KeyFile(tmp_path), PrivateKeys(), plane)
    async with running(keeper):
        keeper.want(7)
        await until(lambda: plane.looks)
    assert keeper.public == ()
    assert not plane.used
    assert not list(tmp_path.iterdir())
