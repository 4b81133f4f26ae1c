"""The agent's hold on the data plane: opens it when the node knows its place, keeps it in step.

Tasks may be assigned before the managers have given the node its index and subnet; attaching waits
for that. Whatever held an address before is adopted before anything new is attached. Peers are
always applied before overlay networks and ports: an endpoint must be routable before it is in the
load balancer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from shoal.errors import FailedPrecondition, NotFound, SwarmError
from shoal.model.objects import Task
from shoal.model.types import PortConfig
from worker.agent.overlays import addresses_of, place_of
from worker.agent.records import NetworkRecord
from worker.network.api import Attachment, NetworkSettings, Peer, PublishedPort
from worker.network.keys import PrivateKeys
from worker.network.local import hostdns
from worker.network.node import NodeNetwork
from worker.network.overlay.api import OverlayState, TaskPlace
from worker.network.overlay.service import OverlayNetworks
from worker.network.owners import Owner
from worker.network.places import addresses_at, no_address
from worker.network.ports import Held, PortHolder

OPEN_WAIT_S = 60.0

_log = structlog.get_logger()


class Containers(Protocol):
    """The engine's containers on overlay networks."""

    def places(self) -> list[TaskPlace]:
        """Those that run."""
        ...

    def lose(self, container: str, reason: str) -> None:
        """Its interfaces are gone."""
        ...

    async def follow(self, state: OverlayState) -> None:
        """The networks are at this state. Raises: Unavailable."""
        ...


class DataPlane:
    """Owns the NodeNetwork of this node, and its part of the overlay networks."""

    def __init__(
        self,
        *,
        run_dir: Path,
        underlay_address: str,
        owner: Owner | None = None,
        keys: PrivateKeys | None = None,
        ipv6: bool = True,
        containers: Containers | None = None,
    ) -> None:
        """owner: whose the tasks' network namespaces are; None: the node's root.

        keys: for encrypted networks, until there are others; None: it can have none.
        ipv6: whether IPv6 clients are served; needs a node with IPv6.
        containers: of the engine; None: there are none.
        """
        self._owner = owner
        self._keys = keys or PrivateKeys()
        self._ipv6 = ipv6
        self._containers = containers
        self._run_dir = run_dir
        self._underlay_address = underlay_address
        self._network: NodeNetwork | None = None
        self._overlays: OverlayNetworks | None = None
        self._opened = asyncio.Event()
        self._record: NetworkRecord | None = None
        self._changing = asyncio.Lock()
        self._publishing = asyncio.Lock()
        self._held: frozenset[Held] = frozenset()
        self._why_closed = ""

    @property
    def is_open(self) -> bool:
        """Whether tasks can be attached."""
        return self._network is not None

    async def open(self, record: NetworkRecord, known: Mapping[str, Task]) -> dict[str, str]:
        """Open the data plane at the node's place; again only when the place is another.

        known: the tasks that held an address before, by id. Result: reason by task id of those
        whose link is gone. Raises: SwarmError; call again then.
        """
        async with self._changing:
            if self._record is not None and _place(self._record) == _place(record):
                return {}
            await self._close(remove=True)
            try:
                network, overlays, lost = await self._opened_at(record, known)
            except (SwarmError, OSError) as error:
                self._why_closed = str(error)
                raise
            self._network, self._overlays = network, overlays
            self._record, self._why_closed = record, ""
            self._opened.set()
            return lost

    async def attach(self, task: Task) -> Attachment:
        """Give a task a namespace, an address of the node's, and its overlay networks."""
        network, overlays = await self._await_open()
        attachment = await network.attach(task.id)
        place = place_of(task, attachment)
        if place is None:
            return attachment
        await overlays.attach(place)
        search = (await asyncio.to_thread(hostdns.read)).search
        return msgspec.structs.replace(
            attachment, overlay_addresses=addresses_of(place), search=search
        )

    async def detach(self, task_id: str) -> None:
        """Take a task's namespace and addresses away. Idempotent."""
        if self._overlays is not None:
            await self._overlays.detach(task_id)
        if self._network is not None:
            await self._network.detach(task_id)

    async def join(self, place: TaskPlace) -> None:
        """Put a container of the engine, whose namespace is there, on its overlay networks."""
        _, overlays = await self._await_open()
        await overlays.attach(place)

    async def leave(self, place: TaskPlace, network_id: str) -> None:
        """Take it off a network while it runs on. place: as it is then. Idempotent."""
        if self._overlays is not None:
            await self._overlays.leave(place, network_id)

    async def release(self, container: str) -> None:
        """It has ended: its overlay networks forget it. Idempotent."""
        if self._overlays is not None:
            await self._overlays.detach(container)

    async def apply(
        self, peers: Iterable[Peer], ports: Iterable[PublishedPort], overlays: OverlayState
    ) -> Mapping[tuple[str, int], str]:
        """Bring the kernel in step. Result: ports that cannot be served here, with the reason.

        Raises: SwarmError when not all of it is in force; what could be is.
        """
        (network, overlay_networks), ports = await self._await_open(), tuple(ports)
        async with self._publishing:
            await network.set_peers(tuple(peers))
            problem = await _problem_of(self._apply_overlays(overlay_networks, overlays))
            report = await network.set_ports(ports)
            self._held = report.held
        if problem is not None:  # the ports are in force all the same
            raise problem
        return report.errors

    async def use_keys(self, keys: PrivateKeys) -> None:
        """Keys of encrypted networks from now on. Raises: SwarmError; call again then."""
        async with self._changing:
            self._keys = keys
            if self._overlays is not None:
                await self._overlays.use_keys(keys)

    async def settle(self) -> bool:
        """Move peers to newer keys that they have proved to have. Result: whether all are moved."""
        async with self._changing:
            return self._overlays is None or await self._overlays.settle()

    async def _apply_overlays(self, networks: OverlayNetworks, state: OverlayState) -> None:
        await networks.apply(state)
        if self._containers is not None:
            await self._containers.follow(state)

    async def find_taken(self, ports: Iterable[PortConfig]) -> str:
        """Why one of these ports cannot be published here; "" when all can.

        A port that this data plane itself holds, for an earlier task, is not taken.
        """
        async with self._publishing:
            ours = {held[:2] for held in self._held}
            for port in ports:
                if (port.protocol.name.lower(), port.published_port) in ours:
                    continue
                if taken := await asyncio.to_thread(find_taken, port):
                    return taken
        return ""

    async def await_listeners(
        self, task_id: str, ports: frozenset[tuple[str, int]], timeout_s: float
    ) -> frozenset[tuple[str, int]]:
        """Wait until a task takes traffic on its ports. Result: on which ones it does not by then.

        Raises: SwarmError when nobody can tell.
        """
        network, _overlays = await self._await_open()
        return await network.await_listeners(task_id, ports, timeout_s)

    async def link_bytes(self, task_id: str) -> tuple[int, int] | None:
        """Bytes received and sent by a task; None when it has no link."""
        if self._network is None:
            return None
        try:
            stats = await self._network.stats(task_id)
        except (SwarmError, OSError):
            return None
        return stats.rx_bytes, stats.tx_bytes

    async def close(self, *, remove: bool) -> None:
        """Let go of the kernel's state, or remove it (the node leaves its cluster)."""
        async with self._changing:
            await self._close(remove=remove)

    async def _close(self, *, remove: bool) -> None:
        network, self._network, self._record = self._network, None, None
        overlays, self._overlays = self._overlays, None
        self._opened.clear()
        self._held = frozenset()
        if overlays is not None:
            await overlays.close(remove=remove)
        if network is not None:
            await network.close(remove=remove)

    async def _opened_at(
        self, record: NetworkRecord, known: Mapping[str, Task]
    ) -> tuple[NodeNetwork, OverlayNetworks, dict[str, str]]:
        settings = NetworkSettings(
            index=record.index,
            subnet=record.subnet,
            underlay_address=self._underlay_address,
            run_dir=str(self._run_dir),
            data_path_port=record.data_path_port,
            owner=self._owner,
            ipv6=self._ipv6,
        )
        async with AsyncExitStack() as undo:
            network = await NodeNetwork.open(settings)
            undo.push_async_callback(network.close)
            overlays = await OverlayNetworks.open(settings)
            undo.push_async_callback(overlays.close)
            await overlays.use_keys(self._keys)
            lost = await _adopt_all(network, overlays, known)
            await self._adopt_containers(overlays)
            for task_id in await network.sweep():
                _log.info("task.network_swept", task_id=task_id)
            undo.pop_all()
        return network, overlays, lost

    async def _adopt_containers(self, overlays: OverlayNetworks) -> None:
        for place in self._containers.places() if self._containers is not None else ():
            try:
                await overlays.adopt(place)
            except (SwarmError, OSError) as error:
                if self._containers is not None:
                    self._containers.lose(place.task_id, str(error))

    async def _await_open(self) -> tuple[NodeNetwork, OverlayNetworks]:
        while self._network is None or self._overlays is None:
            try:
                async with asyncio.timeout(OPEN_WAIT_S):
                    await self._opened.wait()
            except TimeoutError:
                if self._why_closed:
                    raise FailedPrecondition(
                        f"the node's network cannot be opened: {self._why_closed}"
                    ) from None
                raise NotFound(
                    "the node has no place in the ingress network yet: see the manager's log"
                ) from None
        return self._network, self._overlays


def _place(record: NetworkRecord) -> tuple[int, str, int]:
    return record.index, record.subnet, record.data_path_port


async def _adopt_all(
    network: NodeNetwork, overlays: OverlayNetworks, known: Mapping[str, Task]
) -> dict[str, str]:
    lost: dict[str, str] = {}
    for task_id, task in known.items():
        try:
            attachment = await network.adopt(task_id, task.status.address)
            place = place_of(task, attachment)
            if place is not None:
                await overlays.adopt(place)
        except (SwarmError, OSError) as error:
            lost[task_id] = f"the task's network is lost: {error}"
    return lost


async def _problem_of(work: Awaitable[None]) -> SwarmError | None:
    try:
        await work
    except SwarmError as error:
        return error
    return None


def find_taken(port: PortConfig) -> str:
    """Why a port of this namespace cannot be held now; "" when it can."""
    addresses = addresses_at(port.address, port.interface)
    if not addresses:
        return no_address(port.interface)
    holder, protocol = PortHolder(), port.protocol.name.lower()
    try:
        problems = (holder.hold(protocol, port.published_port, one) for one in addresses)
        return next(filter(None, problems), "")
    finally:
        holder.close()
