"""The overlay networks of one node, asynchronously: what the agent calls.

Kernel state lives in a thread of its own (`OverlayKernel`), names in the resolver process, which
runs while tasks need it and outlives the worker. Invariant: when `apply` returns, kernel and names
of every task are at that state. Attaching waits until the managers have told of the network.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from pathlib import Path
from typing import Final, Self

import structlog

from shoal.errors import NotFound, Unavailable
from worker.network.api import NetworkSettings
from worker.network.keys import PrivateKeys
from worker.network.local import hostdns
from worker.network.local.names import Names
from worker.network.local.naming import Client
from worker.network.overlay import naming, plan
from worker.network.overlay.api import OverlayState, TaskPlace
from worker.network.overlay.kernel import OverlayKernel
from worker.network.threads import KernelThread

TOLD_WAIT_S: Final = 60.0
_log = structlog.get_logger()


class OverlayNetworks:
    """This node's part of all overlay networks. Made by `open`, ended by `close`."""

    def __init__(self, settings: NetworkSettings) -> None:
        directory = Path(settings.run_dir) / "overlay"
        self._thread = KernelThread("overlay")
        self._kernel = OverlayKernel(settings)
        self._names = Names(directory / "resolver.sock", self._moved)
        self._changing = asyncio.Lock()
        self._told = asyncio.Condition()
        self._known: frozenset[str] = frozenset()
        """Networks of the newest state, also those this node cannot build."""
        self._places: dict[str, TaskPlace] = {}
        self._asking: set[str] = set()
        """Tasks the resolver was told of."""
        self._adopted = False
        self._closed = False

    @classmethod
    async def open(cls, settings: NetworkSettings) -> Self:
        """Prepare; what an earlier process left stays as it is until the first `apply`.

        Needs root in the network namespace of the calling thread. Raises: Unimplemented naming
        what the kernel lacks; PermissionDenied.
        """
        networks = cls(settings)
        try:
            await networks._thread.run(networks._kernel.open)
        except BaseException:
            await networks.close()
            raise
        return networks

    async def apply(self, state: OverlayState) -> None:
        """Make `state` all there is. Raises: SwarmError; call again then."""
        async with self._changing:
            refused = await self._thread.run(lambda: self._kernel.apply(state))
            for network_id, reason in refused.items():
                _log.error("overlay.network_refused", network_id=network_id, reason=reason)
            await self._names.tell(naming.known_names(state))
            self._known = frozenset(network.network_id for network in state.networks)
            await self._adopt_names()
        async with self._told:
            self._told.notify_all()

    async def use_keys(self, keys: PrivateKeys) -> None:
        """Keys of encrypted networks from now on. Raises: SwarmError; call again then."""
        async with self._changing:
            await self._thread.run(lambda: self._kernel.use_keys(keys))

    async def settle(self) -> bool:
        """Speak to peers by newer keys where they have proved them. Result: whether all have."""
        if self._kernel.is_settled:
            return True
        async with self._changing:
            return await self._thread.run(self._kernel.settle)

    async def attach(self, place: TaskPlace) -> None:
        """Put a task on its networks, and let it ask for names. Idempotent.

        Its namespace must be there. Raises: NotFound (the managers do not tell of a network),
        FailedPrecondition (this node cannot build it), Unavailable (no resolver), Internal.
        """
        await self._wait_told(place)
        async with self._changing:
            before = self._places.get(place.task_id)
            self._places[place.task_id] = place
            try:
                await self._thread.run(lambda: self._kernel.attach(place))
                if place.named_here:
                    await self._name(place)
            except BaseException:
                if before is None or before.links == place.links:
                    await self._let_go(place.task_id)
                else:
                    await self._undo(before, place)
                raise

    async def leave(self, place: TaskPlace, network_id: str) -> None:
        """Take a container that runs on off a network. place: as it is then. Idempotent."""
        async with self._changing:
            await self._thread.run(lambda: self._kernel.leave(place.task_id, network_id))
            if place.task_id in self._places:
                self._places[place.task_id] = place

    async def adopt(self, place: TaskPlace) -> None:
        """Take over a running task after a restart. Raises: NotFound when an interface is gone."""
        async with self._changing:
            await self._thread.run(lambda: self._kernel.adopt(place))
            self._places[place.task_id] = place

    async def detach(self, task_id: str) -> None:
        """Let go of a task, before its namespace is dropped. Idempotent."""
        if task_id in self._places:
            async with self._changing:
                await self._let_go(task_id)

    async def close(self, *, remove: bool = False) -> None:
        """Let go; with `remove`, take every network off this node. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if remove:  # also those of whom an earlier process told
                with contextlib.suppress(Unavailable):
                    await self._names.adopt([])
            await self._names.close(end=remove or not self._places)
            await self._thread.run(lambda: self._kernel.close(remove=remove))
        finally:
            self._thread.stop()

    async def _undo(self, before: TaskPlace, place: TaskPlace) -> None:
        """Take a container that runs off the networks that it has not come on after all."""
        self._places[before.task_id] = before
        for network_id in {one.network_id for one in place.links if one not in before.links}:
            await self._thread.run(partial(self._kernel.leave, before.task_id, network_id))

    async def _wait_told(self, place: TaskPlace) -> None:
        def missing() -> list[str]:
            return [one.network_id for one in place.links if one.network_id not in self._known]

        try:
            async with asyncio.timeout(TOLD_WAIT_S), self._told:
                await self._told.wait_for(lambda: not missing())
        except TimeoutError:
            raise NotFound(
                f"network {', '.join(missing())}: the managers have not told this node of it; "
                "see their logs"
            ) from None

    async def _name(self, place: TaskPlace) -> None:
        ports = await self._names.put(self._client(place))
        await self._thread.run(partial(self._kernel.redirect_names, place.task_id, ports))
        self._asking.add(place.task_id)

    async def _adopt_names(self) -> None:
        """Tell of the tasks of before, as soon as their networks are there."""
        there = self._kernel.networks()
        waiting = [
            place
            for task_id, place in self._places.items()
            if place.named_here
            and task_id not in self._asking
            and all(link.network_id in there for link in place.links)
        ]
        if not self._adopted:
            await self._names.adopt([self._client(place) for place in waiting])
            self._adopted = True
            self._asking.update(place.task_id for place in waiting)
        else:
            for place in waiting:
                await self._name(place)

    def _client(self, place: TaskPlace) -> Client:
        networks = self._kernel.networks()
        shut_in = plan.is_shut_in(place, networks)
        servers = place.servers or hostdns.read().servers
        return naming.client_of(place, networks, servers, forwards=not shut_in)

    async def _let_go(self, task_id: str) -> None:
        self._places.pop(task_id, None)
        self._asking.discard(task_id)
        await self._names.drop(task_id)
        await self._thread.run(partial(self._kernel.detach, task_id))

    def _moved(self, task_id: str, ports: tuple[int, int]) -> None:
        """The resolver listens elsewhere than before."""

        def redirect() -> None:
            with contextlib.suppress(OSError):  # the task is gone by now
                self._kernel.redirect_names(task_id, ports)

        self._thread.later(redirect)
