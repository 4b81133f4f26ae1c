"""Beats of a worker that reach the leader through another manager: judged like any others."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from shoal.api.v1 import dispatcher_pb2, watch_pb2
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherStub
from shoal.api.v1.watch_pb2_grpc import WatchStub
from shoal.model.enums import NodeState
from shoal.security.grpc_tls import local_channel
from shoal.security.roles import Role
from tests.integration.manager.process import ManagerProcess
from tests.integration.raft.processes import Managers, an_identity_of, some_managers
from tests.integration.raft.test_processes import until

pytestmark = pytest.mark.timeout(240)
BEATS = 10
"""More than a session needs until its delays are believed."""
STALL_S = 1.0
"""Beats that this test itself sent so late prove nothing: the least tolerance is 1.75 s."""
TRIES_MAX = 5


class Agent:
    """A worker that beats at the manager's pace, over whatever channel it has."""

    def __init__(self) -> None:
        self.answers = 0
        self.period_s = 0.25
        self.worst_s = 0.0
        self._last_s = 0.0

    async def beat(self, channel: grpc.aio.Channel) -> None:
        """Register and beat until the connection breaks, or for ever."""
        dispatcher = DispatcherStub(channel)
        self._session = dispatcher.Session(dispatcher_pb2.SessionRequest(), wait_for_ready=True)
        first = await self._session.read()
        call = dispatcher.Heartbeat(self._beats(first.session_id))
        async for answer in call:
            self.answers += 1
            self.period_s = answer.period_ns / 1e9

    async def _beats(self, session_id: str) -> AsyncIterator[dispatcher_pb2.HeartbeatRequest]:
        loop = asyncio.get_running_loop()
        while True:
            if self._last_s:
                self.worst_s = max(self.worst_s, loop.time() - self._last_s)
            self._last_s = loop.time()
            yield dispatcher_pb2.HeartbeatRequest(session_id=session_id)
            await asyncio.sleep(self.period_s)


class States:
    """Which states a node was seen in, in order."""

    def __init__(self, managers: Managers, node_id: str) -> None:
        self.seen: list[NodeState] = []
        self._managers = managers
        self._node_id = node_id

    async def follow(self, through: ManagerProcess) -> None:
        request = watch_pb2.WatchRequest(
            selectors=[watch_pb2.WatchSelector(kind="node", ids=[self._node_id])]
        )
        async with local_channel(through.paths.manager_socket) as channel:
            async for message in WatchStub(channel).Watch(request):
                self.seen += [NodeState(event.object.node.status.state) for event in message.events]


async def test_a_worker_behind_a_follower_stays_ready_also_when_that_one_dies(tmp_path):
    with some_managers(tmp_path, 3) as managers:
        await managers.start()
        for node_id in managers.workers * TRIES_MAX:
            worst_s = await try_once(managers, node_id)
            if worst_s < STALL_S:
                return
            await managers.until_members(3)
        pytest.skip(f"this machine held the beats back for {worst_s:.1f} s")


async def try_once(managers: Managers, node_id: str) -> float:
    """The longest pause between two beats that were sent while the node had to stay ready."""
    leader = await managers.leader()
    relays = [one for one in managers.all if one is not leader]
    identity = an_identity_of(leader, node_id, Role.WORKER)
    agent, states = Agent(), States(managers, node_id)
    async with asyncio.TaskGroup() as group:
        following = group.create_task(states.follow(leader))
        async with managers.dial(relays[0], identity) as channel:
            beating = asyncio.create_task(agent.beat(channel))
            await until(lambda: states.seen[-1:] == [NodeState.READY])
            await asyncio.sleep(BEATS * agent.period_s)
            assert agent.answers
            assert not beating.done()
            relays[0].kill()
            with contextlib.suppress(grpc.aio.AioRpcError):
                await beating
        async with managers.dial(relays[1], identity) as channel:
            before = agent.answers
            beating = asyncio.create_task(agent.beat(channel))
            await until(lambda: agent.answers > before)
            await asyncio.sleep(BEATS * agent.period_s)
            if agent.worst_s < STALL_S:
                assert set(states.seen) == {NodeState.READY}
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            # Its session still stands: silence alone is what counts.
            await until(lambda: states.seen[-1:] == [NodeState.DOWN])
        following.cancel()
    relays[0].start()
    print(f"worst pause {agent.worst_s:.2f} s")
    return agent.worst_s
