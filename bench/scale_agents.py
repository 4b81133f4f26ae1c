"""Simulated agents: everything that a manager sees of a node, and no containers.

Each has a certificate, a TLS connection, a session and heartbeats of its own, takes assignments
over the real stream, acknowledges endpoints and reports its tasks through the worker's own
`Reporter`, which merges them as a real node's does. A task is PREPARING as soon as it is assigned
and RUNNING one turn of the event loop later; one that is to stop is SHUTDOWN at once.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterable, AsyncIterator, Mapping

import grpc

from shoal.aio.signal import Signal
from shoal.api.v1 import ca_pb2, types_pb2
from shoal.api.v1 import dispatcher_pb2 as pb
from shoal.api.v1.ca_pb2_grpc import CaStub
from shoal.api.v1.dispatcher_pb2_grpc import DispatcherStub
from shoal.api.v1.objects_pb2 import Task
from shoal.model.defaults import HEARTBEAT_PERIOD_NS
from shoal.model.enums import TaskState
from shoal.model.types import (
    EngineDescription,
    NodeDescription,
    Platform,
    Resources,
    TaskStatus,
)
from shoal.security.grpc_tls import channel_credentials, joiner_credentials, secure_channel
from shoal.security.keys import make_csr, make_key
from shoal.wire.objects import to_pb
from worker.agent.reporter import Reporter

JOINS_AT_ONCE = 16
CALL_TIMEOUT_S = 60.0
CPUS, MEMORY_BYTES = 64, 256 << 30
FIRST_ADDRESS = ipaddress.IPv4Address("10.200.0.1")


class Fleet:
    """All the agents, and how many of their tasks the manager knows to run."""

    def __init__(self, address: str, root_pem: bytes, token: str) -> None:
        self.address = address
        self.lost_sessions = 0
        self.agents: list[Agent] = []
        self._root_pem = root_pem
        self._token = token
        self._changed = asyncio.Condition()
        self._runs: list[asyncio.Task[None]] = []

    @property
    def running(self) -> int:
        """Tasks whose report of RUNNING is committed, and that have not ended."""
        return sum(len(agent.running) for agent in self.agents)

    async def join(self, count: int) -> None:
        """So many new nodes; returns when each has a session and its first complete set."""
        gate = asyncio.Semaphore(JOINS_AT_ONCE)

        async def one(number: int) -> None:
            async with gate:
                agent = await self._agent(number)
                self.agents.append(agent)
                run = asyncio.create_task(agent.run())
                self._runs.append(run)
                complete = asyncio.create_task(agent.complete.wait())
                await asyncio.wait((run, complete), return_when=asyncio.FIRST_COMPLETED)
                if run.done():
                    complete.cancel()
                    run.result()

        first = len(self.agents)
        await asyncio.gather(*(one(number) for number in range(first, first + count)))

    async def until_running(self, count: int) -> None:
        """Wait until so many tasks run, as the manager knows."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.running == count)

    async def changed(self) -> None:
        """Wake who waits for a number of tasks."""
        async with self._changed:
            self._changed.notify_all()

    async def close(self) -> None:
        """End every agent."""
        for run in self._runs:
            run.cancel()
        await asyncio.gather(*self._runs, return_exceptions=True)

    async def _agent(self, number: int) -> Agent:
        key = make_key()
        async with secure_channel(self.address, joiner_credentials(self._root_pem)) as channel:
            request = ca_pb2.IssueNodeCertificateRequest(
                csr=make_csr(key), token=self._token, hostname=f"agent-{number}"
            )
            issued = await CaStub(channel).IssueNodeCertificate(request, timeout=CALL_TIMEOUT_S)
        credentials = channel_credentials(self._root_pem, issued.certificate, key)
        return Agent(self, number, credentials)


class Agent:
    """One node."""

    def __init__(self, fleet: Fleet, number: int, credentials: grpc.ChannelCredentials) -> None:
        self.complete = asyncio.Event()
        self.running: set[str] = set()
        self._fleet = fleet
        self._credentials = credentials
        self._reporter = Reporter()
        self._session_id = ""
        self._known: dict[str, TaskState] = {}
        self._version = Signal()
        self._wanted_version = 0
        description = NodeDescription(
            hostname=f"agent-{number}",
            platform=Platform(architecture="amd64", os="linux"),
            resources=Resources(nano_cpus=CPUS * 10**9, memory_bytes=MEMORY_BYTES),
            engine=EngineDescription(engine_version="simulated"),
            data_path_address=str(FIRST_ADDRESS + number),
        )
        self._description = to_pb(description, types_pb2.NodeDescription)

    async def run(self) -> None:
        """Keep a session for ever; a lost one is counted, and the next begins afresh."""
        while True:
            channel = secure_channel(self._fleet.address, self._credentials)
            try:
                async with channel:
                    await self._session(DispatcherStub(channel))
            except* grpc.aio.AioRpcError:
                self._fleet.lost_sessions += 1
                await asyncio.sleep(1.0)

    async def _session(self, stub: DispatcherStub) -> None:
        call = stub.Session(pb.SessionRequest(description=self._description))
        messages = aiter(call)
        first: pb.SessionMessage = await anext(messages)
        self._session_id = first.session_id
        async with asyncio.TaskGroup() as group:
            group.create_task(_exhaust(messages))
            group.create_task(self._beat(stub))
            group.create_task(self._follow(stub))
            group.create_task(self._acknowledge(stub))
            group.create_task(self._reporter.run(lambda batch: self._report(stub, batch)))

    async def _beat(self, stub: DispatcherStub) -> None:
        period_s = HEARTBEAT_PERIOD_NS / 1e9
        request = pb.HeartbeatRequest(session_id=self._session_id)

        async def beats() -> AsyncIterator[pb.HeartbeatRequest]:
            while True:
                yield request
                await asyncio.sleep(period_s)

        async for answer in stub.Heartbeat(beats()):
            period_s = answer.period_ns / 1e9

    async def _follow(self, stub: DispatcherStub) -> None:
        async for message in stub.Assignments(pb.AssignmentsRequest(session_id=self._session_id)):
            for change in message.changes:
                if change.assignment.HasField("task"):
                    self._take(change.assignment.task, removed=change.remove)
            if not message.more:
                self._wanted_version = message.endpoints_version
                self._version.set()
                self.complete.set()

    def _take(self, task: Task, *, removed: bool) -> None:
        if removed:
            self._known.pop(task.id, None)
            self._reporter.forget(task.id)
            self._ended(task.id)
        elif task.desired_state > TaskState.RUNNING:
            self._move(task.id, TaskState.SHUTDOWN)
        elif self._known.get(task.id, TaskState.NEW) < TaskState.PREPARING:
            self._move(task.id, TaskState.PREPARING)
            asyncio.get_running_loop().call_soon(self._start, task.id)

    def _start(self, task_id: str) -> None:
        if self._known.get(task_id) is TaskState.PREPARING:
            self._move(task_id, TaskState.RUNNING)

    def _move(self, task_id: str, state: TaskState) -> None:
        if self._known.get(task_id) is not state:
            self._known[task_id] = state
            self._reporter.report(task_id, TaskStatus(state=state, message=state.name.lower()))

    async def _report(self, stub: DispatcherStub, batch: Mapping[str, TaskStatus]) -> None:
        request = pb.UpdateTaskStatusRequest(session_id=self._session_id)
        for task_id, status in batch.items():
            request.updates.add(task_id=task_id, status=to_pb(status, types_pb2.TaskStatus))
        await stub.UpdateTaskStatus(request, timeout=CALL_TIMEOUT_S)
        for task_id, status in batch.items():
            if status.state is TaskState.RUNNING:
                self.running.add(task_id)
            elif status.state > TaskState.RUNNING:
                self.running.discard(task_id)
        await self._fleet.changed()

    def _ended(self, task_id: str) -> None:
        self.running.discard(task_id)

    async def _acknowledge(self, stub: DispatcherStub) -> None:
        while True:
            await self._version.wait()
            request = pb.AcknowledgeEndpointsRequest(
                session_id=self._session_id, endpoints_version=self._wanted_version
            )
            await stub.AcknowledgeEndpoints(request, timeout=CALL_TIMEOUT_S)


async def _exhaust(call: AsyncIterable[pb.SessionMessage]) -> None:
    async for _ in call:
        pass
