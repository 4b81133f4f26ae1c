"""Local networks that tell what happens to them: `docker events` of networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.ports import Event, Events
from worker.network.local.api import (
    ContainerNetworking,
    Endpoint,
    EndpointSpec,
    LinkCounters,
    LocalNetwork,
    LocalNetworks,
    Sandbox,
)


class AnnouncedNetworks:
    """The same networks; what has been done is told."""

    def __init__(self, networks: LocalNetworks, events: Events) -> None:
        self._networks = networks
        self._events = events

    async def create(self, wanted: LocalNetwork) -> LocalNetwork:
        """As `LocalNetworks.create`."""
        made = await self._networks.create(wanted)
        self._tell("create", made)
        return made

    async def refresh(self, *, patiently: bool = False) -> None:
        """As `LocalNetworks.refresh`."""
        await self._networks.refresh(patiently=patiently)

    def list(self) -> tuple[LocalNetwork, ...]:
        """As `LocalNetworks.list`."""
        return self._networks.list()

    def resolve(self, ref: str) -> LocalNetwork:
        """As `LocalNetworks.resolve`."""
        return self._networks.resolve(ref)

    async def remove(self, ref: str) -> LocalNetwork:
        """As `LocalNetworks.remove`."""
        gone = await self._networks.remove(ref)
        self._tell("destroy", gone)
        return gone

    async def start(self, wanted: ContainerNetworking) -> Sandbox:
        """As `LocalNetworks.start`."""
        sandbox = await self._networks.start(wanted)
        for endpoint in sandbox.endpoints:
            self._tell("connect", self.resolve(endpoint.network_id), wanted.container)
        return sandbox

    async def stop(self, container: str) -> None:
        """As `LocalNetworks.stop`."""
        sandbox = self._networks.sandbox(container)
        endpoints = sandbox.endpoints if sandbox is not None else ()
        networks = [self.resolve(endpoint.network_id) for endpoint in endpoints]
        await self._networks.stop(container)
        for network in networks:
            self._tell("disconnect", network, container)

    async def connect(self, container: str, network: str, spec: EndpointSpec) -> Endpoint:
        """As `LocalNetworks.connect`."""
        made = await self._networks.connect(container, network, spec)
        self._tell("connect", self.resolve(network), container)
        return made

    async def disconnect(self, container: str, network: str) -> None:
        """As `LocalNetworks.disconnect`."""
        target = self.resolve(network)
        await self._networks.disconnect(container, network)
        self._tell("disconnect", target, container)

    async def rename(self, container: str, name: str) -> None:
        """As `LocalNetworks.rename`."""
        await self._networks.rename(container, name)

    def endpoints(self, network: str) -> tuple[Endpoint, ...]:
        """As `LocalNetworks.endpoints`."""
        return self._networks.endpoints(network)

    def sandbox(self, container: str) -> Sandbox | None:
        """As `LocalNetworks.sandbox`."""
        return self._networks.sandbox(container)

    async def stats(self, container: str) -> tuple[LinkCounters, ...]:
        """As `LocalNetworks.stats`."""
        return await self._networks.stats(container)

    async def adopt(self, running: Mapping[str, ContainerNetworking]) -> Sequence[str]:
        """As `LocalNetworks.adopt`."""
        return await self._networks.adopt(running)

    def _tell(self, action: str, network: LocalNetwork, container: str = "") -> None:
        attributes = {"name": network.name, "type": network.driver}
        if container:
            attributes["container"] = container
        self._events.publish(Event("network", action, network.id, attributes))
