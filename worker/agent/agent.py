"""The agent: keeps a session with a manager and does what it is told, for as long as it runs.

Losing the managers changes nothing for the containers: they run on, reports wait, and the next
session begins with the complete list of what the node has to run. A gap in the sequence of
assignments ends the session, and the next one starts afresh. A network that cannot be opened does
not end the session: the managers hear from the node why its tasks cannot run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing
from typing import Protocol

import grpc
import structlog

from shoal.aio.backoff import Backoff
from shoal.aio.cancel import apart, raise_if_cancelled
from shoal.aio.signal import Signal
from shoal.aio.supervise import Supervisor
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    SwarmError,
    Unavailable,
    Unimplemented,
)
from shoal.model import defaults
from shoal.model.images import join
from shoal.model.objects import Task
from shoal.model.specs import NetworkAttachmentSpec
from shoal.model.types import NodeDescription
from worker.agent.attachments import Attachments
from worker.agent.client import AssignmentsBatch, ManagerClient, PortKey, SessionNews
from worker.agent.devices import DeviceList, list_devices
from worker.agent.endpoints import EndpointApplier
from worker.agent.files import FileKey
from worker.agent.logs import LogPublisher
from worker.agent.network_keys import NetworkKeyKeeper
from worker.agent.overlays import OverlayItem, OverlayKey, key_of, state_of
from worker.agent.reach import Reach
from worker.agent.records import NetworkRecord, Records
from worker.agent.remotes import Remotes
from worker.agent.reporter import Reporter
from worker.agent.tasks import NodeTasks
from worker.network import ipv6
from worker.network.api import Peer, PublishedPort
from worker.network.overlay.api import OverlayState

FIRST_MESSAGE_TIMEOUT_S = 5.0
HEARTBEAT_MIN_S = 0.05
NETWORK_RETRY_S = 5.0
FACTS_LOOK_S = 10.0
IMAGES_LOOK_S = 30.0
TASKS_PER_TURN = 16
"""Tasks taken over before the event loop gets a turn: each writes a small file."""

Connect = Callable[[str], grpc.aio.Channel]

_log = structlog.get_logger()


class Plane(Protocol):
    """What the agent needs of the data plane."""

    async def open(self, record: NetworkRecord, known: Mapping[str, Task]) -> dict[str, str]:
        """Open it at the node's place. Result: reason by id of tasks whose link is gone."""
        ...

    async def apply(
        self, peers: Iterable[Peer], ports: Iterable[PublishedPort], overlays: OverlayState
    ) -> Mapping[tuple[str, int], str]:
        """Bring the kernel in step. Result: ports that cannot be served here, with the reason."""
        ...


class Agent:
    """One per worker process while the node is in a cluster."""

    def __init__(
        self,
        *,
        node_id: str,
        tasks: NodeTasks,
        data_plane: Plane,
        records: Records,
        reporter: Reporter,
        description: NodeDescription,
        managers: tuple[str, ...],
        connect: Connect,
        container_dir: Callable[[str], str],
        network_keys: NetworkKeyKeeper,
        attachments: Attachments,
        announce: Callable[[SessionNews], None] = lambda _: None,
        addresses6: Callable[[], tuple[str, ...]] = ipv6.own_addresses,
        devices: Callable[[], DeviceList] = list_devices,
        images: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        """announce: is told what each session says of the node and of the cluster.

        addresses6, devices: the node's IPv6 addresses and its devices as they are now; the latter
        may block. images: names of the images that the node has, those to be told first at first.
        """
        self._spread: int = sum(ord(letter) * 31**place for place, letter in enumerate(node_id))
        self._tasks = tasks
        self._data_plane = data_plane
        self._records = records
        self._reporter = reporter
        self._description = description
        self._remotes = Remotes(managers)
        self._reach = Reach()
        self._backoff = Backoff()
        self._connect = connect
        self._container_dir = container_dir
        self._network_keys = network_keys
        self._attachments = attachments
        self._announce = announce
        self._leaving = False
        self._addresses6 = addresses6
        self._devices = devices
        self._images = images
        self._peers: dict[str, Peer] = {}
        self._ports: dict[PortKey, PublishedPort] = {}
        self._overlays: dict[OverlayKey, OverlayItem] = {}
        self._applier = EndpointApplier(
            self._apply_endpoints,
            looks_again=lambda: any(port.interface for port in self._ports.values()),
        )
        self._place: NetworkRecord | None = None
        self._place_changed = Signal()
        self._roots_changed = Signal()
        self._why_no_session = "the node has not reached a manager yet"
        self._why_no_network = ""

    def trust(self, root_pem: bytes) -> None:
        """Tell managers that these are the roots the node trusts from now on."""
        self._description = self._description.replaced(trust_root=root_pem)
        self._roots_changed.set()

    @property
    def why_not_ready(self) -> str:
        """Why the node does not do all it should; empty when it does."""
        reasons = (
            self._why_no_session,
            self._why_no_network,
            self._applier.problem,
            self._network_keys.problem,
        )
        return "; ".join(reason for reason in reasons if reason)

    async def run(self) -> None:
        """Adopt what runs, then keep a session until cancelled. May be called again if it fails."""
        await self._tasks.restore()
        record = await asyncio.to_thread(self._records.network)
        if record is not None:
            self._remotes.learn(dict.fromkeys(record.managers, 1))
            self._set_place(record)
        async with Supervisor() as supervisor:
            supervisor.start("runtime events", self._tasks.follow_runtime)
            supervisor.start("data plane", self._keep_data_plane)
            supervisor.start("network keys", self._network_keys.run)
            await supervisor.guard(self._keep_session())

    # -- the node's place in the network -------------------------------------------------------

    def _set_place(self, record: NetworkRecord) -> None:
        if record != self._place:
            self._place = record
            self._place_changed.set()

    async def _keep_data_plane(self) -> None:
        """Open the data plane at the newest place, until that has worked; then wait for another."""
        while True:
            await self._place_changed.wait(NETWORK_RETRY_S if self._why_no_network else None)
            place = self._place
            if place is None:
                continue
            try:
                lost = await self._data_plane.open(place, self._tasks.attached())
            except (SwarmError, OSError) as error:
                self._why_no_network = f"the node's network cannot be opened: {error}"
                _log.error("network.not_opened", reason=str(error))
                continue
            self._why_no_network = ""
            self._tasks.lose_networks(lost)

    # -- sessions ------------------------------------------------------------------------------

    async def _keep_session(self) -> None:
        attempt = 0
        while True:
            address = self._remotes.choose(self._draw(attempt))
            attempt += 1
            try:
                await apart(self._try_session(address))
            except* SwarmError as group:
                reason = "; ".join(sorted({str(error) for error in _leaves(group)}))
                self._why_no_session = f"no session with manager {address}: {reason}"
                self._remotes.failed(address)
                _log.warning("session.lost", manager=address, reason=reason)
            raise_if_cancelled()
            # Nodes that lost the same manager come back one after the other.
            pause_s = self._backoff.next_s(self._draw(attempt))
            back = await self._reach.pause(pause_s, self._remotes.addresses)
            if back:  # no load kept the node away: it was cut off
                self._remotes.answers(back)
                self._backoff.reset()

    async def _try_session(self, address: str) -> None:
        await self._reach.require(address)
        async with self._connect(address) as channel:
            await self._session(ManagerClient(channel), address)

    def leave(self) -> None:
        """The node leaves the cluster: when the session ends, the managers are told so."""
        self._leaving = True

    def _draw(self, attempt: int) -> float:
        """0 up to 1; different for the nodes and for each attempt of one."""
        return (self._spread * (2 * attempt + 1)) % 101 / 101

    async def _session(self, client: ManagerClient, address: str) -> None:
        known = self._network_keys.public
        addresses, devices = self._addresses6(), await asyncio.to_thread(self._devices)
        images = join(self._images())
        description = self._description.replaced(
            images=images,
            network_keys=known,
            ipv6_addresses=addresses,
            devices=devices.paths,
            devices_known=devices.complete,
        )
        async with aclosing(client.session(description)) as news:
            first = await _first(news)
            self._learn(first)
            self._why_no_session = ""
            self._remotes.succeeded(address)
            _log.info("session.opened", session_id=first.session_id)
            self._tasks.report_all()
            publisher = LogPublisher(client, self._container_dir, self._tasks.task)
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._beat(client))
                    group.create_task(self._follow_news(news))
                    group.create_task(self._follow_assignments(client))
                    group.create_task(self._reporter.run(client.report))
                    group.create_task(self._network_keys.report(known, client.report_network_keys))
                    group.create_task(self._report_images(client, images))
                    group.create_task(publisher.run())
                    group.create_task(self._await_other_facts(description))
                    group.create_task(self._attachments.run(client))
            except asyncio.CancelledError:
                await asyncio.shield(client.close_session(leaving=self._leaving))
                raise

    async def _report_images(self, client: ManagerClient, known: bytes) -> None:
        """Tell of images that came or went, now and then: the managers need not know at once."""
        while True:
            await asyncio.sleep(IMAGES_LOOK_S)
            images = join(self._images())
            if images != known:
                try:
                    await client.report_images(images)
                except Unimplemented:  # a manager of before
                    return
                known = images

    async def _await_other_facts(self, told: NodeDescription) -> None:
        """End the session when what it said of the node is no longer so: the next one tells it."""
        while True:
            if self._description.trust_root != told.trust_root:
                raise Unavailable("the node trusts other roots now: it registers anew")
            if await self._roots_changed.wait(FACTS_LOOK_S):
                continue
            if self._addresses6() != told.ipv6_addresses:
                raise Unavailable("the node's IPv6 addresses have changed: it registers anew")
            devices = await asyncio.to_thread(self._devices)
            if (devices.paths, devices.complete) != (told.devices, told.devices_known):
                raise Unavailable("the node's devices have changed: it registers anew")

    async def _beat(self, client: ManagerClient) -> None:
        """Beat; once the manager has answered, the next pause is the shortest again.

        However short the session then was: a node that is too busy to keep its sessions would be
        called down for its pauses. The manager bounds how often a node may come back.
        """
        await client.beat(least_s=HEARTBEAT_MIN_S, answered=self._backoff.reset)

    async def _follow_news(self, news: AsyncIterator[SessionNews]) -> None:
        async for item in news:
            self._learn(item)

    def _learn(self, news: SessionNews) -> None:
        self._announce(news)
        self._remotes.learn(news.weights)
        self._network_keys.want(news.network_key_generation)
        ingress = news.node.ingress
        if ingress is None:
            return
        record = NetworkRecord(
            index=ingress.index,
            subnet=ingress.subnet,
            data_path_port=news.data_path_port or defaults.DATA_PATH_PORT,
            managers=self._remotes.addresses,
        )
        if record != self._place:
            try:
                self._records.save_network(record)
            except OSError as error:
                _log.error("network.not_recorded", reason=str(error))
        self._set_place(record)

    # -- assignments ---------------------------------------------------------------------------

    async def _follow_assignments(self, client: ManagerClient) -> None:
        self._peers, self._ports, self._overlays = {}, {}, {}
        self._applier.begin()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._applier.run(client.acknowledge))
            await self._take_assignments(client)

    async def _take_assignments(self, client: ManagerClient) -> None:
        sequence = 0
        complete: set[str] | None = set()
        files: set[FileKey] = set()
        async with aclosing(client.assignments()) as batches:
            async for batch in batches:
                if batch.applies_to != sequence or batch.complete != (complete is not None):
                    raise FailedPrecondition(
                        f"assignments: got {batch.applies_to} after {sequence}: begin again"
                    )
                sequence = batch.results_in
                self._merge_endpoints(batch)
                self._tasks.files.contents.deliver(batch.files)
                await self._assign(batch)
                self._tasks.files.contents.withdraw(batch.removed_files)
                if complete is not None:
                    complete.update(task.id for task in batch.tasks)
                    complete.difference_update(batch.removed_tasks)
                    files.update((type(row), row.id) for row in batch.files)
                    files.difference_update(batch.removed_files)
                if batch.more:
                    continue
                if complete is not None:
                    self._tasks.keep_only(complete)
                    self._tasks.files.contents.keep_only(files)
                    self._attachments.keep_only(complete)
                    complete = None
                self._applier.want(batch.endpoints_version)

    async def _assign(self, batch: AssignmentsBatch) -> None:
        for number, task in enumerate(batch.tasks, 1):
            if isinstance(task.spec.runtime, NetworkAttachmentSpec):
                self._attachments.assign(task)
                continue
            self._tasks.assign(task)
            if number % TASKS_PER_TURN == 0:
                await asyncio.sleep(0)
        for task_id in batch.removed_tasks:
            self._tasks.unassign(task_id)
            self._attachments.unassign(task_id)

    def _merge_endpoints(self, batch: AssignmentsBatch) -> None:
        self._peers.update((peer.node_id, peer) for peer in batch.peers)
        self._ports.update(batch.ports)
        for node_id in batch.removed_peers:
            self._peers.pop(node_id, None)
        for key in batch.removed_ports:
            self._ports.pop(key, None)
        self._overlays.update((key_of(item), item) for item in batch.overlays)
        for item in batch.removed_overlays:
            self._overlays.pop(key_of(item), None)

    async def _apply_endpoints(self) -> Mapping[tuple[str, int], str]:
        peers = tuple(self._peers.values())
        errors = await self._data_plane.apply(
            peers, tuple(self._ports.values()), state_of(self._overlays, peers)
        )
        self._network_keys.look()
        return errors


async def _first(news: AsyncIterator[SessionNews]) -> SessionNews:
    try:
        async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT_S):
            return await anext(news)
    except TimeoutError:
        raise DeadlineExceeded(
            f"the manager did not open a session within {FIRST_MESSAGE_TIMEOUT_S:g} s"
        ) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
