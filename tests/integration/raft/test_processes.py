"""Managers as processes: killed, frozen, asked through each other.

SHOAL_KILL_ROUNDS says how often a leader is killed under writers, 4 without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

import grpc
import pytest

from manager.consensus.recovery import Place, recover
from manager.storage.member import Opening
from shoal.api.v1 import (
    ca_pb2,
    ca_pb2_grpc,
    control_pb2,
    dispatcher_pb2,
    logs_pb2,
    specs_pb2,
    watch_pb2,
)
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherStub
from shoal.api.v1.logs_pb2_grpc import LogBrokerStub, LogsStub
from shoal.api.v1.watch_pb2_grpc import WatchStub
from shoal.model.enums import NodeState
from shoal.model.objects import Service
from shoal.security.forwarded import FORWARDED_KEY
from shoal.security.grpc_tls import joiner_credentials, local_channel, secure_channel
from shoal.security.keys import make_csr, make_key
from shoal.security.roles import Role
from shoal.wire.objects import entry_from_bytes, to_pb
from tests.integration.raft.processes import Managers, an_identity_of, some_managers
from tests.support.managing import refusal
from tests.support.planning import a_service

pytestmark = pytest.mark.timeout(240)

KILL_ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "4"))
WAIT_S = 40.0
RETRIED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest.fixture
async def managers(tmp_path: Path):
    with some_managers(tmp_path, 3) as found:
        await found.start()
        yield found


def a_spec(name: str):
    return to_pb(a_service(name).spec, specs_pb2.ServiceSpec)


async def create(manager, name: str) -> None:
    async with local_channel(manager.paths.manager_socket) as channel:
        request = control_pb2.CreateServiceRequest(spec=a_spec(name))
        await ControlStub(channel).CreateService(request, timeout=WAIT_S)


class Writers:
    """Create services through all managers; what was acknowledged is remembered."""

    def __init__(self, managers: Managers) -> None:
        self._managers = managers
        self.acknowledged: set[str] = set()
        self.spans: list[tuple[float, float]] = []
        """When an acknowledged write was begun, and when it was acknowledged."""

    def first_after(self, moment: float) -> float | None:
        """When the first write that was begun after a moment was acknowledged."""
        return min((end for begin, end in self.spans if begin > moment), default=None)

    async def write(self, number: int) -> None:
        turn = 0
        while True:
            turn += 1
            name = f"w{number}-{turn}"
            for manager in self._managers.running[number % len(self._managers.running) :]:
                begin = time.monotonic()
                try:
                    await create(manager, name)
                except grpc.aio.AioRpcError as error:
                    if error.code() is grpc.StatusCode.ALREADY_EXISTS:
                        self.acknowledged.add(name)  # an answer of before was lost
                        break
                    if error.code() not in RETRIED:
                        raise
                else:
                    self.acknowledged.add(name)
                    self.spans.append((begin, time.monotonic()))
                    break
            await asyncio.sleep(0.01)


async def test_killed_leaders_lose_nothing_acknowledged(managers):
    writers = Writers(managers)
    tasks = [asyncio.create_task(writers.write(number)) for number in range(4)]
    gaps = []
    try:
        for _ in range(KILL_ROUNDS):
            leader = await managers.leader()
            count = len(writers.spans)
            await until(lambda count=count: len(writers.spans) > count + 10)
            leader.kill()
            killed = time.monotonic()
            await until(lambda killed=killed: writers.first_after(killed) is not None)
            gaps.append(writers.first_after(killed) - killed)
            leader.start()
            await managers.until_members(3)
    finally:
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in results), results
    print(f"{len(writers.acknowledged)} acknowledged; next write after {sorted(gaps)}")
    for through in managers.all:
        assert writers.acknowledged <= await names(through)
    for manager in managers.all:
        manager.kill()
    held = [stored(manager) for manager in managers.all]
    assert sum(writers.acknowledged <= names for names in held) >= 2, "durable on a majority"


async def names(manager) -> set[str]:
    async with local_channel(manager.paths.manager_socket) as channel:
        found: set[str] = set()
        token = ""
        while True:
            request = control_pb2.ListServicesRequest(page_token=token)
            answer = await ControlStub(channel).ListServices(request, timeout=WAIT_S)
            found |= {one.spec.annotations.name for one in answer.services}
            token = answer.next_page_token
            if not token:
                return found


def stored(manager) -> set[str]:
    """Names of the services in the log of a stopped manager, committed or not."""
    place = Place(manager.paths.raft, Opening(manager.cluster_id), manager.node_id, "")
    recovery = recover(place)
    recovery.opened.wal.close()
    found = {one.spec.annotations.name for one in recovery.tables.services}
    log = recovery.start.storage
    for entry in log.entries(recovery.start.applied + 1, log.last_index + 1, 1 << 40):
        if entry.kind == 1:
            for action in entry_from_bytes(entry.data).actions:
                if isinstance(action.object, Service):
                    found.add(action.object.spec.annotations.name)
    return found


async def until(condition) -> None:
    async with asyncio.timeout(40):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_frozen_leader_is_replaced_and_passes_calls_on_when_it_thaws(managers):
    leader = await managers.leader()
    assert leader.process is not None
    leader.process.send_signal(signal.SIGSTOP)
    try:
        others = [one for one in managers.all if one is not leader]
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await create(others[0], "while-frozen")
                    break
    finally:
        leader.process.send_signal(signal.SIGCONT)
    await managers.until_members(3)
    assert await managers.leader() is not leader
    async with asyncio.timeout(60):
        while "while-frozen" not in await names(leader):
            await asyncio.sleep(0.05)


async def test_calls_of_every_shape_pass_through_a_follower(managers):
    follower = await managers.follower()
    worker = an_identity_of(follower, managers.workers[0], Role.WORKER)
    async with (
        local_channel(follower.paths.manager_socket) as local,
        managers.dial(follower, worker) as agent,
    ):
        watch = WatchStub(local).Watch(watch_pb2.WatchRequest(), timeout=WAIT_S)
        assert (await watch.read()).version.index > 0
        await create(follower, "seen")
        event = (await watch.read()).events[0]
        assert event.object.service.spec.annotations.name == "seen"

        session = DispatcherStub(agent).Session(dispatcher_pb2.SessionRequest(), timeout=WAIT_S)
        first = await session.read()
        assert first.node.id == managers.workers[0]
        assert len(first.managers) == 3
        nodes = {one.id: one for one in await managers.nodes()}
        status = nodes[managers.workers[0]].status
        assert (status.state, status.address) == (NodeState.READY, "127.0.0.1")
        listening = LogBrokerStub(agent).ListenSubscriptions(
            logs_pb2.ListenSubscriptionsRequest(), timeout=WAIT_S
        )
        selector = logs_pb2.LogSelector(nodes=[managers.workers[0]])
        lines = LogsStub(local).SubscribeLogs(
            logs_pb2.SubscribeLogsRequest(selector=selector), timeout=WAIT_S
        )
        end = await lines.read()
        assert end is grpc.aio.EOF or end.incomplete or end.messages
        listening.cancel()
        goodbye = dispatcher_pb2.CloseSessionRequest(session_id=first.session_id)
        await DispatcherStub(agent).CloseSession(goodbye, timeout=WAIT_S)

        async def published():
            yield logs_pb2.PublishLogsMessage(subscription_id="nothing")

        text = await refusal(LogBrokerStub(agent).PublishLogs(published(), timeout=WAIT_S))
        assert "nobody reads these logs any more" in text
    async with secure_channel(
        follower.address, joiner_credentials(follower.secrets.root_certificate_pem)
    ) as joiner:
        answer = await ca_pb2_grpc.CaStub(joiner).GetRootCaCertificate(
            ca_pb2.GetRootCaCertificateRequest(), timeout=WAIT_S
        )
        assert answer.certificate == follower.secrets.root_certificate_pem


async def test_only_managers_vouch_for_others_and_only_once(managers):
    leader, follower = await managers.leader(), await managers.follower()
    worker = an_identity_of(leader, managers.workers[0], Role.WORKER)
    manager = an_identity_of(leader, follower.node_id, Role.MANAGER)
    claim = ((FORWARDED_KEY, "local - -"),)

    async def ask(who, identity) -> str:
        async with managers.dial(who, identity) as channel:
            call = ControlStub(channel).ListNodes(
                control_pb2.ListNodesRequest(), metadata=claim, timeout=WAIT_S
            )
            return await refusal(call)

    assert "only a manager may call for others" in await ask(leader, worker)
    assert "does not lead the cluster" in await ask(follower, manager)
    bad = ((FORWARDED_KEY, "worker - -"),)
    async with managers.dial(leader, manager) as channel:
        call = ControlStub(channel).ListNodes(
            control_pb2.ListNodesRequest(), metadata=bad, timeout=WAIT_S
        )
        assert "names nobody" in await refusal(call)


async def test_without_a_majority_calls_say_so(managers):
    survivor = managers.all[2]
    for manager in managers.all[:2]:
        manager.kill()
    async with asyncio.timeout(60):
        while True:
            async with local_channel(survivor.paths.manager_socket) as channel:
                text = await refusal(
                    ControlStub(channel).ListNodes(control_pb2.ListNodesRequest(), timeout=WAIT_S)
                )
            # At first the others still count as reachable: then there is merely no leader.
            if "lost its quorum: 1 of 3 managers is reachable, 2 are needed" in text:
                break
            await asyncio.sleep(0.1)
    assert "lost its quorum: 1 of 3" in await join_as_worker(survivor)
    for manager in managers.all[:2]:
        manager.start()
    await managers.until_members(3)
    assert len(await managers.nodes()) == 3 + len(managers.workers), "nobody joined meanwhile"


async def join_as_worker(through) -> str:
    """Ask for a certificate as a new node does; the refusal."""
    root = through.secrets.root_certificate_pem
    async with secure_channel(through.address, joiner_credentials(root)) as channel:
        request = ca_pb2.IssueNodeCertificateRequest(
            csr=make_csr(make_key()), token=through.secrets.tokens.worker, hostname="late"
        )
        return await refusal(
            ca_pb2_grpc.CaStub(channel).IssueNodeCertificate(request, timeout=WAIT_S)
        )
