"""Containers of the engine on the cluster's networks: implements `ClusterNetworks`.

The managers give the addresses, the data plane makes the interfaces, and the records say what is
held over a restart of this process. Invariant: what the managers count as attached is held here or
given back: a session begins with the complete list, and whatever nobody here holds is detached.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import msgspec
import structlog

from shoal.aio.signal import Signal
from shoal.clock import Clock
from shoal.errors import InvalidArgument, NotFound, SwarmError, Unavailable
from shoal.model.enums import TaskState
from shoal.model.objects import Network, Task
from shoal.model.specs import NetworkAttachmentSpec
from shoal.model.types import Driver, IpamConfig, NetworkAttachmentConfig, TaskStatus
from worker.agent.client import ManagerClient
from worker.agent.dataplane import DataPlane
from worker.agent.reporter import Reporter
from worker.network.local.api import Endpoint, EndpointSpec, IpamPool, LocalNetwork
from worker.network.overlay import naming
from worker.network.overlay.api import OverlayState, TaskPlace
from worker.network.overlay.containers import (
    DRIVER,
    ContainerFiles,
    ContainerRecord,
    Joined,
    TellNames,
    endpoint_of,
    free_interface,
    place_of,
)

SESSION_WAIT_S = 30.0
"""How long a container that starts waits for a manager, as in Docker."""
GIVE_BACK_WAIT_S = 2.0
"""How long whoever leaves a network waits for the managers to know of it."""

_log = structlog.get_logger()


class Attachments:
    """One per worker process; the agent comes and goes with the node's membership."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._files = ContainerFiles(directory)
        self._records = self._files.load()
        self._clock = clock
        self._networks: tuple[LocalNetwork, ...] = ()
        self._plane: DataPlane | None = None
        self._reporter: Reporter | None = None
        self._client: ManagerClient | None = None
        self._before_session: frozenset[str] = frozenset()
        self._opened = asyncio.Event()
        self._joining: set[str] = set()
        self._owed: dict[str, asyncio.Event] = {}
        """Attachments that the managers have yet to be told the end of."""
        self._news = Signal()
        self._tellers: list[TellNames] = []
        self._state = OverlayState()
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._losing: set[asyncio.Task[None]] = set()

    # What the engine asks ---------------------------------------------------------------------

    async def refresh(self, *, patiently: bool = False) -> None:
        """As `ClusterNetworks.refresh`."""
        client = await self._session(SESSION_WAIT_S if patiently else 0)
        if client is None:
            return
        try:
            self._networks = tuple(map(as_local, await client.list_networks()))
        except SwarmError as error:
            _log.warning("attachment.networks_unknown", reason=error.message)

    def known(self) -> tuple[LocalNetwork, ...]:
        """As `ClusterNetworks.known`."""
        held = {one.network.id: one.network for _, one in self._held()}
        found = held | {network.id: network for network in self._networks}
        return tuple(sorted(found.values(), key=lambda one: (one.name, one.id)))

    async def join(
        self, container: str, name: str, netns_path: str, network: LocalNetwork, spec: EndpointSpec
    ) -> Endpoint:
        """As `ClusterNetworks.join`."""
        _check(spec)
        async with self._locks[container]:
            client, plane = await self._session(SESSION_WAIT_S), self._plane
            if client is None or plane is None:
                raise Unavailable("the node has no session with a manager: see `swarmctl info`")
            for attachment in list(self._owed):  # of an earlier run: not to be taken up again
                await self._told_of(attachment)
            self._joining.add(container)
            try:
                task = await client.attach_network(
                    NetworkAttachmentConfig(network.id, spec.aliases, tuple(_wished(spec))),
                    container_id=container,
                    name=name,
                )
                before = self._records.get(container) or ContainerRecord(
                    container=container, name=name, netns_path=netns_path
                )
                joined = Joined(
                    attachment=task.id,
                    network=network,
                    spec=spec,
                    interface=free_interface(before),
                    addresses=task.networks[0].addresses,
                )
                try:
                    await self._plug(plane, before, joined)
                except BaseException:
                    self._keep(before)
                    self._owe(task.id)
                    raise
            finally:
                self._joining.discard(container)
            self._report(joined.attachment)
            return endpoint_of(container, joined)

    async def leave(self, container: str, network: str) -> None:
        """As `ClusterNetworks.leave`."""
        async with self._locks[container]:
            record = self._records.get(container)
            gone = [one for one in record.joined if one.network.id == network] if record else []
            if record is None or not gone:
                raise NotFound(f"container {container} is not connected to network {network}")
            await self._unplug(record, gone[0])
        await self._told_of(gone[0].attachment)

    async def release(self, container: str) -> None:
        """As `ClusterNetworks.release`."""
        async with self._locks[container]:
            record = self._records.get(container)
            if record is None:
                return
            if self._plane is not None:
                await self._plane.release(container)
            self._keep(msgspec.structs.replace(record, joined=()))
            for one in record.joined:
                self._owe(one.attachment)
        self._locks.pop(container, None)
        for one in record.joined:
            await self._told_of(one.attachment)

    def endpoints(self, container: str) -> tuple[Endpoint, ...]:
        """As `ClusterNetworks.endpoints`."""
        record = self._records.get(container)
        return tuple(endpoint_of(container, one) for one in record.joined) if record else ()

    def containers(self) -> frozenset[str]:
        """As `ClusterNetworks.containers`."""
        return frozenset(self._records)

    def tell(self, names: TellNames) -> None:
        """As `ClusterNetworks.tell`."""
        self._tellers.append(names)

    async def _session(self, wait_s: float) -> ManagerClient | None:
        """The session with a manager; a node that has just started gets some time to have one."""
        if self._client is None and self._plane is not None and wait_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._opened.wait()
        return self._client

    # What the data plane asks -----------------------------------------------------------------

    def bind(self, plane: DataPlane, reporter: Reporter) -> None:
        """The node is in a cluster."""
        self._plane, self._reporter = plane, reporter

    def unbind(self) -> None:
        """The node has no agent any more. What containers have stays."""
        self._plane = self._reporter = self._client = None
        self._networks = ()

    def places(self) -> list[TaskPlace]:
        """The containers' places, to be adopted."""
        return [place_of(record) for record in self._records.values()]

    def lose(self, container: str, reason: str) -> None:
        """The container's interfaces are gone: its addresses are given back."""
        record = self._records.get(container)
        if record is None:
            return
        _log.warning("attachment.lost", container=container, reason=reason)
        self._keep(msgspec.structs.replace(record, joined=()))
        for one in record.joined:
            self._owe(one.attachment)

    def forget(self) -> None:
        """The node has left its cluster: no container is on its networks any more."""
        for container in list(self._records):
            self.lose(container, "the node has left the cluster")
        self._owed.clear()

    async def follow(self, state: OverlayState) -> None:
        """The networks are at this state: their names are. Raises: Unavailable."""
        self._state = state
        if self._records:
            await self._tell_names()

    # What the agent asks ----------------------------------------------------------------------

    async def run(self, client: ManagerClient) -> None:
        """Speak to this manager for as long as the session lasts; tell it what was given back."""
        self._client = client
        self._opened.set()
        self._before_session = frozenset(one.attachment for _, one in self._held())
        for attachment in self._before_session:
            self._report(attachment)
        self._news.set()
        try:
            while True:
                await self._news.wait()
                for attachment, told in list(self._owed.items()):
                    await _give_back(client, attachment)
                    self._owed.pop(attachment, None)
                    told.set()
        finally:
            self._client = None
            self._opened.clear()

    def assign(self, task: Task) -> None:
        """The managers count this as attached here."""
        runtime = task.spec.runtime
        if not isinstance(runtime, NetworkAttachmentSpec) or runtime.container_id in self._joining:
            return
        if all(one.attachment != task.id for _, one in self._held()):
            self._owe(task.id)

    def unassign(self, attachment: str) -> None:
        """The managers do not count it as attached any more."""
        for record, one in list(self._held()):
            if one.attachment == attachment:
                work = asyncio.create_task(self._lose(record.container, one))
                self._losing.add(work)
                work.add_done_callback(self._losing.discard)

    def keep_only(self, attachments: set[str]) -> None:
        """The managers' complete list, as the session began: nothing else is attached."""
        for attachment in self._before_session - attachments:
            self.unassign(attachment)

    # ------------------------------------------------------------------------------------------

    def _held(self) -> Iterator[tuple[ContainerRecord, Joined]]:
        for record in self._records.values():
            for one in record.joined:
                yield record, one

    async def _plug(self, plane: DataPlane, before: ContainerRecord, joined: Joined) -> None:
        after = msgspec.structs.replace(before, joined=(*before.joined, joined))
        self._keep(after)
        await plane.join(place_of(after))
        await self._tell_names()

    async def _unplug(self, record: ContainerRecord, gone: Joined) -> None:
        rest = msgspec.structs.replace(
            record, joined=tuple(one for one in record.joined if one is not gone)
        )
        if self._plane is not None:
            await self._plane.leave(place_of(rest), gone.network.id)
        self._keep(rest)
        self._owe(gone.attachment)

    async def _lose(self, container: str, gone: Joined) -> None:
        """Take a container off a network that the managers have taken it off."""
        _log.warning("attachment.taken_away", container=container, network=gone.network.name)
        with suppress(NotFound):
            try:
                await self.leave(container, gone.network.id)
            except (SwarmError, OSError) as error:
                _log.error("attachment.not_left", container=container, reason=str(error))

    def _keep(self, record: ContainerRecord) -> None:
        """Note what a container has; a record that cannot be written is as good as the last one."""
        try:
            if record.joined:
                self._records[record.container] = record
                self._files.save(record)
            else:
                self._records.pop(record.container, None)
                self._files.remove(record.container)
        except OSError as error:
            _log.error("attachment.not_recorded", container=record.container, reason=str(error))

    def _owe(self, attachment: str) -> None:
        self._owed.setdefault(attachment, asyncio.Event())
        self._news.set()

    async def _told_of(self, attachment: str) -> None:
        """Wait a moment until the managers know; without a session the next one tells them."""
        told = self._owed.get(attachment)
        if told is not None and self._client is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVE_BACK_WAIT_S):
                    await told.wait()

    def _report(self, attachment: str) -> None:
        if self._reporter is not None:
            status = TaskStatus(
                state=TaskState.RUNNING, timestamp_ns=self._clock.now_ns(), message="attached"
            )
            self._reporter.report(attachment, status)

    async def _tell_names(self) -> None:
        names = naming.known_names(self._state)
        for tell in self._tellers:
            await tell(names)


async def _give_back(client: ManagerClient, attachment: str) -> None:
    """Raises: SwarmError if trying again may help; what the managers refuse is not this node's."""
    try:
        await client.detach_network(attachment)
    except SwarmError as error:
        if error.retryable:
            raise
        _log.error("attachment.not_given_back", attachment=attachment, reason=error.message)


def _check(spec: EndpointSpec) -> None:
    """Refuse what an overlay network cannot give."""
    if spec.driver_options:
        name = next(iter(spec.driver_options))
        raise InvalidArgument(f"driver option {name}: endpoints of overlay networks have none here")
    if spec.mac_address:
        raise InvalidArgument(
            "mac address: on an overlay network it follows from the IP address: ask for that one"
        )
    if spec.link_local_addresses:
        raise InvalidArgument("link-local-ip: an overlay network gives none")
    if spec.links:
        raise InvalidArgument(
            "link: containers on an overlay network find each other by name and alias"
        )


def _wished(spec: EndpointSpec) -> Iterator[str]:
    yield from filter(None, (spec.ipv4_address, spec.ipv6_address))


def as_local(network: Network) -> LocalNetwork:
    """A network of the cluster in the words of the node's own."""
    spec = network.spec
    given, asked = network.driver_state or Driver(), spec.driver or Driver()
    configs = network.ipam.configs or spec.ipam.configs
    return LocalNetwork(
        id=network.id,
        name=spec.annotations.name,
        created_at_ns=network.meta.created_at_ns,
        driver=DRIVER,
        pools=tuple(map(_pool, configs)),
        internal=spec.internal,
        attachable=spec.attachable,
        enable_ipv6=spec.ipv6_enabled,
        options={**given.options, **asked.options},
        labels=dict(spec.annotations.labels),
    )


def _pool(config: IpamConfig) -> IpamPool:
    return IpamPool(
        subnet=config.subnet,
        ip_range=config.ip_range,
        gateway=config.gateway,
        reserved=dict(config.reserved),
    )
