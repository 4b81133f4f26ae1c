"""Heartbeats of the agent: at the manager's pace, until the manager ends them or falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from typing_extensions import override

from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from tests.support.dispatcher import ScriptedDispatcher
from worker.agent import client as client_module
from worker.agent.client import ManagerClient

LEAST_S = 0.01


class Manager(ScriptedDispatcher):
    """Answers only the first `answers` beats; then it ends the stream or says nothing more."""

    answers = 1 << 30
    ends = False

    @override
    async def Heartbeat(self, request_iterator: Any, context: Any) -> Any:
        async for _ in request_iterator:
            self.beats += 1
            if self.beats <= self.answers:
                yield pb.HeartbeatResponse(period_ns=self.period_ns)
            elif self.ends:
                return


@pytest.fixture
async def manager(tmp_path: Path) -> AsyncIterator[Manager]:
    made = Manager(tmp_path / "m.sock")
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def beat(manager: ScriptedDispatcher) -> None:
    async with grpc.aio.insecure_channel(manager.address) as channel:
        await ManagerClient(channel).beat(least_s=LEAST_S)


async def test_it_beats_at_the_manager_s_pace_until_it_is_cancelled(manager):
    task = asyncio.create_task(beat(manager))
    async with asyncio.timeout(20):
        while manager.beats < 20:
            await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_end_of_the_stream_ends_the_beats(manager):
    manager.answers, manager.ends = 3, True
    with pytest.raises(Unavailable, match="ended the heartbeats"):
        await beat(manager)
    assert manager.beats == 4


async def test_a_manager_that_does_not_answer_any_more_is_given_up(manager, monkeypatch):
    monkeypatch.setattr(client_module, "RPC_TIMEOUT_S", 4.0)
    manager.answers = 3
    with pytest.raises(DeadlineExceeded, match="does not answer heartbeats"):
        await beat(manager)
    assert manager.beats > 3, "it went on beating while it waited"


async def test_a_refusal_is_passed_on(tmp_path):
    manager = ScriptedDispatcher(tmp_path / "m.sock")
    manager.refuse_beat = FailedPrecondition("the session is over: register again")
    manager.sessions.append("")
    await manager.start()
    try:
        with pytest.raises(FailedPrecondition, match="register again"):
            await beat(manager)
    finally:
        await manager.stop()
