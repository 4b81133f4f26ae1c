"""The agent's hold on the data plane: opens it when the node knows its place, keeps it in step.

Tasks may be assigned before the managers have given the node its index and subnet; attaching waits
for that. Peers are always applied before ports: an endpoint must be routable before it is in the
load balancer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

import structlog

from shoal.errors import NotFound, SwarmError
from worker.agent.records import NetworkRecord
from worker.network.api import Attachment, NetworkSettings, Peer, PublishedPort
from worker.network.node import NodeNetwork

OPEN_WAIT_S = 60.0

_log = structlog.get_logger()


class DataPlane:
    """Owns the NodeNetwork of this node."""

    def __init__(self, *, run_dir: Path, underlay_address: str) -> None:
        self._run_dir = run_dir
        self._underlay_address = underlay_address
        self._network: NodeNetwork | None = None
        self._opened = asyncio.Event()
        self._record: NetworkRecord | None = None
        self._busy = asyncio.Lock()

    @property
    def is_open(self) -> bool:
        """Whether tasks can be attached."""
        return self._network is not None

    async def open(self, record: NetworkRecord) -> None:
        """Open the data plane at the node's place; again only when the place is another."""
        async with self._busy:
            known = self._record
            if known is not None and (known.index, known.subnet) == (record.index, record.subnet):
                return
            if self._network is not None:
                await self._network.close(remove=True)
                self._network = None
            settings = NetworkSettings(
                index=record.index,
                subnet=record.subnet,
                underlay_address=self._underlay_address,
                run_dir=str(self._run_dir),
                data_path_port=record.data_path_port,
            )
            self._network = await NodeNetwork.open(settings)
            self._record = record
            self._opened.set()

    async def attach(self, task_id: str) -> Attachment:
        """Give a task a namespace and an address."""
        return await (await self._await_open()).attach(task_id)

    async def adopt(self, task_id: str, address: str) -> None:
        """Keep the namespace and address of a task that was running before this process."""
        if self._network is None:
            return
        try:
            await self._network.adopt(task_id, address)
        except NotFound:
            _log.warning("task.network_lost", task_id=task_id, address=address)

    async def sweep(self) -> None:
        """After all adoptions: drop what no task owns."""
        if self._network is not None:
            for task_id in await self._network.sweep():
                _log.info("task.network_swept", task_id=task_id)

    async def detach(self, task_id: str) -> None:
        """Take a task's namespace and address away. Idempotent."""
        if self._network is not None:
            await self._network.detach(task_id)

    async def apply(
        self, peers: Iterable[Peer], ports: Iterable[PublishedPort]
    ) -> Mapping[tuple[str, int], str]:
        """Bring the kernel in step. Result: ports that cannot be served here, with the reason."""
        network = await self._await_open()
        await network.set_peers(tuple(peers))
        report = await network.set_ports(tuple(ports))
        return report.errors

    async def link_bytes(self, task_id: str) -> tuple[int, int] | None:
        """Bytes received and sent by a task; None when it has no link."""
        if self._network is None:
            return None
        try:
            stats = await self._network.stats(task_id)
        except SwarmError:
            return None
        return stats.rx_bytes, stats.tx_bytes

    async def close(self, *, remove: bool) -> None:
        """Let go of the kernel's state, or remove it (the node leaves its cluster)."""
        async with self._busy:
            if self._network is not None:
                await self._network.close(remove=remove)
                self._network = None
                self._record = None
                self._opened.clear()

    async def _await_open(self) -> NodeNetwork:
        while self._network is None:
            try:
                async with asyncio.timeout(OPEN_WAIT_S):
                    await self._opened.wait()
            except TimeoutError:
                raise NotFound(
                    "the node has no place in the ingress network yet: see the manager's log"
                ) from None
        return self._network
