"""The agent: keeps a session with a manager and does what it is told, for as long as it runs.

Losing the managers changes nothing for the containers: they run on, reports wait, and the next
session begins with the complete list of what the node has to run. A gap in the sequence of
assignments ends the session, and the next one starts afresh.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import grpc
import structlog

from shoal.aio.backoff import Backoff
from shoal.aio.supervise import Supervisor
from shoal.errors import FailedPrecondition, SwarmError, Unavailable
from shoal.model.types import NodeDescription
from worker.agent.client import AssignmentsBatch, ManagerClient, PortKey, SessionNews
from worker.agent.dataplane import DataPlane
from worker.agent.logs import LogPublisher
from worker.agent.records import NetworkRecord, Records
from worker.agent.reporter import Reporter
from worker.agent.tasks import NodeTasks
from worker.network.api import Peer, PublishedPort

FIRST_MESSAGE_TIMEOUT_S = 5.0
PORT_RETRY_S = 5.0

Connect = Callable[[str], grpc.aio.Channel]

_log = structlog.get_logger()


class Agent:
    """One per worker process while the node is in a cluster."""

    def __init__(
        self,
        *,
        tasks: NodeTasks,
        data_plane: DataPlane,
        records: Records,
        reporter: Reporter,
        description: NodeDescription,
        managers: tuple[str, ...],
        connect: Connect,
        container_dir: Callable[[str], str],
    ) -> None:
        self._tasks = tasks
        self._data_plane = data_plane
        self._records = records
        self._reporter = reporter
        self._description = description
        self._managers = managers
        self._connect = connect
        self._container_dir = container_dir
        self._peers: dict[str, Peer] = {}
        self._ports: dict[PortKey, PublishedPort] = {}
        self.why_not_ready = "the node has not reached a manager yet"

    async def run(self) -> None:
        """Adopt what runs, then keep a session until cancelled."""
        record = self._records.network()
        if record is not None:
            self._managers = record.managers or self._managers
            await self._data_plane.open(record)
        await self._tasks.restore()
        async with Supervisor() as supervisor:
            supervisor.start("runtime events", self._tasks.follow_runtime)
            await self._keep_session()

    async def _keep_session(self) -> None:
        backoff = Backoff()
        attempt = 0
        while True:
            address = self._managers[attempt % len(self._managers)]
            attempt += 1
            try:
                async with self._connect(address) as channel:
                    await self._session(ManagerClient(channel), backoff)
            except* SwarmError as group:
                reason = "; ".join(str(error) for error in group.exceptions)
                self.why_not_ready = f"no session with manager {address}: {reason}"
                _log.warning("session.lost", manager=address, reason=reason)
            await asyncio.sleep(backoff.next_s())

    async def _session(self, client: ManagerClient, backoff: Backoff) -> None:
        news = client.session(self._description)
        async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT_S):
            first = await anext(news)
        await self._learn(first)
        backoff.reset()
        self.why_not_ready = ""
        _log.info("session.opened", session_id=first.session_id)
        self._tasks.report_all()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._beat(client))
                group.create_task(self._follow_news(news))
                group.create_task(self._follow_assignments(client))
                group.create_task(self._reporter.run(client.report))
                group.create_task(LogPublisher(client, self._container_dir).run())
        except asyncio.CancelledError:
            await asyncio.shield(client.close_session())
            raise

    async def _follow_news(self, news: object) -> None:
        async for item in news:  # type: ignore[attr-defined]
            await self._learn(item)

    async def _learn(self, news: SessionNews) -> None:
        if news.managers:
            self._managers = news.managers
        ingress = news.node.ingress
        if ingress is None:
            return
        record = NetworkRecord(
            index=ingress.index,
            subnet=ingress.subnet,
            data_path_port=news.data_path_port,
            managers=self._managers,
        )
        self._records.save_network(record)
        await self._data_plane.open(record)

    async def _beat(self, client: ManagerClient) -> None:
        while True:
            period_s = await client.heartbeat()
            await asyncio.sleep(period_s)

    async def _follow_assignments(self, client: ManagerClient) -> None:
        sequence = 0
        complete: set[str] | None = set()
        self._peers, self._ports = {}, {}
        applier = EndpointApplier(self._apply_endpoints, client.acknowledge)
        async with asyncio.TaskGroup() as group:
            group.create_task(applier.run())
            async for batch in client.assignments():
                if batch.applies_to != sequence:
                    raise FailedPrecondition(
                        f"assignments: got {batch.applies_to} after {sequence}: begin again"
                    )
                sequence = batch.results_in
                self._merge_endpoints(batch)
                if complete is not None:
                    complete.update(task.id for task in batch.tasks)
                for task in batch.tasks:
                    self._tasks.assign(task)
                for task_id in batch.removed_tasks:
                    self._tasks.unassign(task_id)
                if complete is not None and not batch.more:
                    self._tasks.keep_only(complete)
                    complete = None
                if complete is None:
                    applier.want(batch.endpoints_version)

    def _merge_endpoints(self, batch: AssignmentsBatch) -> None:
        self._peers.update((peer.node_id, peer) for peer in batch.peers)
        self._ports.update(batch.ports)
        for node_id in batch.removed_peers:
            self._peers.pop(node_id, None)
        for key in batch.removed_ports:
            self._ports.pop(key, None)

    async def _apply_endpoints(self) -> dict[tuple[str, int], str]:
        peers, ports = tuple(self._peers.values()), tuple(self._ports.values())
        return dict(await self._data_plane.apply(peers, ports))


class EndpointApplier:
    """Applies the newest endpoints and acknowledges their version; never falls behind.

    Versions that arrive while one is being applied are merged into the next. Ports that could not
    be served are tried again after a while: the process that holds one may end.
    """

    def __init__(
        self,
        apply: Callable[[], Awaitable[dict[tuple[str, int], str]]],
        acknowledge: Callable[[int, dict[tuple[str, int], str]], Awaitable[None]],
    ) -> None:
        self._apply = apply
        self._acknowledge = acknowledge
        self._version = 0
        self._wanted = asyncio.Event()

    def want(self, version: int) -> None:
        """This version is complete and may be applied."""
        if version != self._version:
            self._version = version
            self._wanted.set()

    async def run(self) -> None:
        """Apply for ever."""
        errors: dict[tuple[str, int], str] | None = None
        while True:
            try:
                async with asyncio.timeout(PORT_RETRY_S if errors else None):
                    await self._wanted.wait()
            except TimeoutError:
                pass
            self._wanted.clear()
            version = self._version
            try:
                errors = await self._apply()
            except Unavailable:
                raise
            except SwarmError as error:
                _log.error("endpoints.not_applied", version=version, reason=error.message)
                errors = {("tcp", 0): error.message}
                await asyncio.sleep(1.0)
                self._wanted.set()
                continue
            await self._acknowledge(version, errors)
