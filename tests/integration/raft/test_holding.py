"""Calls through a follower at the moment when the leader dies: real managers, killed and frozen."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import pytest

from shoal.api.v1 import control_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.security.grpc_tls import local_channel
from tests.integration.raft.processes import Managers, some_managers
from tests.integration.raft.test_processes import a_spec, names, until

pytestmark = pytest.mark.timeout(240)
PATIENT_S = 60.0
"""A caller's deadline: far above an election, also on a busy machine."""


@pytest.fixture
async def managers(tmp_path) -> AsyncIterator[Managers]:
    with some_managers(tmp_path, 3) as found:
        await found.start()
        yield found


def create(control: ControlStub, name: str):
    return control.CreateService(
        control_pb2.CreateServiceRequest(spec=a_spec(name)), timeout=PATIENT_S
    )


def list_all(control: ControlStub):
    return control.ListServices(control_pb2.ListServicesRequest(), timeout=PATIENT_S)


async def test_calls_through_a_follower_outlive_the_leader(managers: Managers):
    """What is asked after the kill is answered; nobody is told to try again."""
    leader = await managers.leader()
    followers = [one for one in managers.all if one is not leader]
    async with (
        local_channel(followers[0].paths.manager_socket) as one,
        local_channel(followers[1].paths.manager_socket) as two,
    ):
        controls = [ControlStub(one), ControlStub(two)]
        await asyncio.gather(*(create(control, f"w{n}") for n, control in enumerate(controls)))
        leader.kill()
        wanted = {f"after-{n}" for n in range(20)}
        writes = [create(controls[n % 2], name) for n, name in enumerate(sorted(wanted))]
        reads = [list_all(controls[n % 2]) for n in range(20)]
        await asyncio.gather(*reads, *writes)
        for follower in followers:
            assert wanted <= await names(follower)


async def test_a_change_under_way_when_the_leader_dies_is_not_called_undone(managers: Managers):
    """Each name is created at most once; whoever is not told so, is told that it is not known."""
    outcomes: Counter[str] = Counter()
    for turn in range(3):
        leader = await managers.leader()
        follower = next(one for one in managers.all if one is not leader)
        async with local_channel(follower.paths.manager_socket) as channel:
            control = ControlStub(channel)
            asked = [f"t{turn}-{n}" for n in range(60)]
            calls = [asyncio.ensure_future(create(control, name)) for name in asked]
            await until(lambda calls=calls: any(call.done() for call in calls))
            leader.kill()
            results = await asyncio.gather(*calls, return_exceptions=True)
            held = await names(follower)
        leader.start()
        await managers.until_members(3)
        for name, result in zip(asked, results, strict=True):
            if not isinstance(result, BaseException):
                outcomes["acknowledged"] += 1
                assert name in held
                continue
            assert isinstance(result, grpc.aio.AioRpcError), result
            text = result.details() or ""
            assert result.code() is grpc.StatusCode.UNAVAILABLE, text
            assert "may or may not" in text, text
            outcomes["unknown, and done" if name in held else "unknown, not done"] += 1
    print(outcomes)
    assert outcomes["acknowledged"]


async def test_reads_through_a_follower_outlive_a_leader_that_froze(managers: Managers):
    """It answers nothing and breaks no connection: reads go to the next leader all the same."""
    leader = await managers.leader()
    assert leader.process is not None
    follower = next(one for one in managers.all if one is not leader)
    async with local_channel(follower.paths.manager_socket) as channel:
        control = ControlStub(channel)
        await create(control, "before")
        leader.process.send_signal(signal.SIGSTOP)
        try:
            found = await list_all(control)
            assert [one.spec.annotations.name for one in found.services] == ["before"]
        finally:
            leader.process.send_signal(signal.SIGCONT)
