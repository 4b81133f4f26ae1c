"""The node's networks and the cluster's as one: what the engine's containers are connected to.

Docker's rules: a container on networks of the cluster alone has its way out, and its published
ports, through the bridge `docker_gwbridge`, unless all of them are internal. Networks of the
cluster are made and removed by its managers. Invariant: a container has all its places, or none.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

import msgspec

from engine.cluster.words import rpc_text
from engine.http.errors import Refused, status_of
from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    NameConflict,
    NotFound,
    PermissionDenied,
    SwarmError,
)
from worker.network.local.api import (
    GATEWAY,
    ContainerNetworking,
    Endpoint,
    EndpointSpec,
    LinkCounters,
    LocalNetwork,
    Sandbox,
)
from worker.network.local.naming import Place
from worker.network.local.service import Networks
from worker.network.overlay.containers import DRIVER, ClusterNetworks

GATEWAY_OPTIONS = {
    "com.docker.network.bridge.enable_icc": "false",
    "com.docker.network.bridge.enable_ip_masquerade": "true",
    "com.docker.network.bridge.name": "shout0",
}


class SpanningNetworks:
    """Implements `worker.network.local.api.LocalNetworks` over both."""

    def __init__(self, local: Networks, cluster: ClusterNetworks) -> None:
        self._local = local
        self._cluster = cluster
        cluster.tell(local.tell_names)

    # Networks ---------------------------------------------------------------------------------

    async def refresh(self, *, patiently: bool = False) -> None:
        """Learn which networks the cluster has by now."""
        await self._cluster.refresh(patiently=patiently)

    def list(self) -> tuple[LocalNetwork, ...]:
        """Every network, by name."""
        both = [*self._local.list(), *self._cluster.known()]
        return tuple(sorted(both, key=lambda one: (one.name, one.id)))

    def resolve(self, ref: str) -> LocalNetwork:
        """By full id, name, or unique id prefix. Raises: NotFound, InvalidArgument (ambiguous)."""
        return find(self.list(), ref)

    async def create(self, wanted: LocalNetwork) -> LocalNetwork:
        """As `LocalNetworks.create`; names of the cluster's networks are taken."""
        if any(one.name == wanted.name for one in self._cluster.known()):
            raise NameConflict(f"network with name {wanted.name} already exists")
        return await self._local.create(wanted)

    async def remove(self, ref: str) -> LocalNetwork:
        """As `LocalNetworks.remove`."""
        network = self.resolve(ref)
        if network.driver == DRIVER:
            raise FailedPrecondition(
                f"network {network.name} is the cluster's: its managers remove it"
            )
        return await self._local.remove(network.id)

    # Containers -------------------------------------------------------------------------------

    async def start(self, wanted: ContainerNetworking) -> Sandbox:
        """As `LocalNetworks.start`."""
        own, cluster = self._parted(wanted.networks)
        if not cluster:
            return await self._local.start(wanted)
        if self._needs_gateway(own, cluster):
            own = [*own, ((await self._gateway()).id, EndpointSpec())]
        sandbox = await self._local.start(
            msgspec.structs.replace(
                wanted,
                networks=tuple(own),
                elsewhere=tuple(_place(network) for network, _ in cluster),
            )
        )
        try:
            for network, spec in cluster:
                await self._join(wanted, sandbox, network, spec)
        except BaseException:
            await asyncio.shield(self.stop(wanted.container))
            raise
        return self._whole(sandbox, wanted.container, wanted)

    async def stop(self, container: str) -> None:
        """As `LocalNetworks.stop`."""
        try:
            await self._cluster.release(container)
        finally:
            await self._local.stop(container)

    async def connect(self, container: str, network: str, spec: EndpointSpec) -> Endpoint:
        """As `LocalNetworks.connect`."""
        target, wanted = self.resolve(network), self._local.wanted(container)
        if target.driver != DRIVER:
            return await self._local.connect(container, target.id, spec)
        sandbox = self._local.sandbox(container)
        if wanted is None or sandbox is None:
            raise NotFound(f"container {container} has no network of its own here")
        endpoints = self._cluster.endpoints(container)
        if any(one.network_id == target.id for one in endpoints):
            raise PermissionDenied(
                f"endpoint with name {wanted.name} already exists in network {target.name}"
            )
        own, _ = self._parted(wanted.networks)
        if self._needs_gateway(own, [(target, spec)]):
            await self._local.connect(container, (await self._gateway()).id, EndpointSpec())
        made = await self._join(wanted, sandbox, target, spec)
        try:
            await self._local.place_elsewhere(container, (*wanted.elsewhere, _place(target)))
        except BaseException:
            with suppress(SwarmError):
                await asyncio.shield(self._cluster.leave(container, target.id))
            raise
        return made

    async def disconnect(self, container: str, network: str) -> None:
        """As `LocalNetworks.disconnect`."""
        target, wanted = self.resolve(network), self._local.wanted(container)
        if target.driver != DRIVER or wanted is None:
            await self._local.disconnect(container, target.id)
            return
        await self._cluster.leave(container, target.id)
        rest = tuple(one for one in wanted.elsewhere if one.network != target.id)
        await self._local.place_elsewhere(container, rest)
        ways = [one for one in self._local.list() if one.name == GATEWAY]
        if not rest and ways and any(ref == ways[0].id for ref, _ in wanted.networks):
            await self._local.disconnect(container, ways[0].id)

    async def rename(self, container: str, name: str) -> None:
        """As `LocalNetworks.rename`; on the cluster's networks it keeps its name until it ends."""
        await self._local.rename(container, name)

    def endpoints(self, network: str) -> tuple[Endpoint, ...]:
        """As `LocalNetworks.endpoints`."""
        target = self.resolve(network)
        if target.driver != DRIVER:
            return self._local.endpoints(target.id)
        return tuple(
            one
            for container in sorted(self._cluster.containers())
            for one in self._cluster.endpoints(container)
            if one.network_id == target.id
        )

    def sandbox(self, container: str) -> Sandbox | None:
        """As `LocalNetworks.sandbox`."""
        sandbox, wanted = self._local.sandbox(container), self._local.wanted(container)
        if sandbox is None or wanted is None:
            return None
        return self._whole(sandbox, container, wanted)

    async def stats(self, container: str) -> tuple[LinkCounters, ...]:
        """As `LocalNetworks.stats`; interfaces of every network."""
        return await self._local.stats(container)

    async def adopt(self, running: Mapping[str, ContainerNetworking]) -> Sequence[str]:
        """As `LocalNetworks.adopt`."""
        lost = await self._local.adopt(
            {container: await self._as_held(wanted) for container, wanted in running.items()}
        )
        for container in self._cluster.containers() - (running.keys() - set(lost)):
            await self._cluster.release(container)
        for container in running.keys() - set(lost):
            await self._adopt_places(container)
        return lost

    # ------------------------------------------------------------------------------------------

    def _parted(
        self, networks: Iterable[tuple[str, EndpointSpec]]
    ) -> tuple[
        builtins.list[tuple[str, EndpointSpec]], builtins.list[tuple[LocalNetwork, EndpointSpec]]
    ]:
        """The node's own networks, and the cluster's."""
        own, cluster = [], []
        for ref, spec in networks:
            network = self.resolve(ref)
            if network.driver == DRIVER:
                cluster.append((network, spec))
            else:
                own.append((network.id, spec))
        return own, cluster

    def _needs_gateway(
        self,
        own: Iterable[tuple[str, EndpointSpec]],
        cluster: Iterable[tuple[LocalNetwork, EndpointSpec]],
    ) -> bool:
        """Whether nothing leads outside yet, and something should."""
        leads_out = any(not self.resolve(ref).internal for ref, _ in own)
        return not leads_out and any(not network.internal for network, _ in cluster)

    async def _gateway(self) -> LocalNetwork:
        """The bridge to the outside, made when the first container needs it."""
        found = [one for one in self._local.list() if one.name == GATEWAY]
        if found:
            return found[0]
        wanted = LocalNetwork(id="", name=GATEWAY, created_at_ns=0, options=GATEWAY_OPTIONS)
        try:
            return await self._local.create(wanted)
        except NameConflict:  # another container was faster
            return self._local.resolve(GATEWAY)

    async def _join(
        self,
        wanted: ContainerNetworking,
        sandbox: Sandbox,
        network: LocalNetwork,
        spec: EndpointSpec,
    ) -> Endpoint:
        try:
            return await self._cluster.join(
                wanted.container, wanted.name, sandbox.netns_path, network, spec
            )
        except SwarmError as error:
            raise _refusal(network, error) from error

    def _whole(self, sandbox: Sandbox, container: str, wanted: ContainerNetworking) -> Sandbox:
        """The sandbox with its places on the cluster's networks, which come first."""
        places = self._cluster.endpoints(container)
        if not places:
            return sandbox
        name = wanted.hostname
        if wanted.domainname:
            name = f"{name}.{wanted.domainname} {name}"
        gateway = {one.ipv4_address for one in sandbox.endpoints if one.network_name == GATEWAY}
        own = [(address, name) for one in places
               for address in (one.ipv4_address, one.ipv6_address) if address]  # fmt: skip
        return msgspec.structs.replace(
            sandbox,
            endpoints=(*places, *sandbox.endpoints),
            hosts=(*own, *(line for line in sandbox.hosts if line[0] not in gateway)),
        )

    async def _as_held(self, wanted: ContainerNetworking) -> ContainerNetworking:
        """What the node's own networks are to hold of a container that runs."""
        own, cluster = self._parted(wanted.networks)
        if self._needs_gateway(own, cluster):
            own = [*own, ((await self._gateway()).id, EndpointSpec())]
        return msgspec.structs.replace(wanted, networks=tuple(own))

    async def _adopt_places(self, container: str) -> None:
        """The record of its places counts, where a crash came in between."""
        wanted = self._local.wanted(container)
        places = tuple(
            Place(network=one.network_id, network_name=one.network_name, names=())
            for one in self._cluster.endpoints(container)
        )
        if wanted is not None and set(wanted.elsewhere) != set(places):
            with suppress(SwarmError):
                await self._local.place_elsewhere(container, places)


def find(networks: Sequence[LocalNetwork], ref: str) -> LocalNetwork:
    """By full id, name, or unique id prefix. Raises: NotFound, InvalidArgument (ambiguous)."""
    named = [one for one in networks if one.id == ref] or [
        one for one in networks if one.name == ref
    ]
    if named:
        return named[0]
    found = [one for one in networks if ref and one.id.startswith(ref)]
    if len(found) > 1:
        raise InvalidArgument(
            f"{len(found)} matches found based on ID prefix: network {ref} is ambiguous"
        )
    if not found:
        raise NotFound(f"network {ref} not found")
    return found[0]


def _place(network: LocalNetwork) -> Place:
    return Place(network=network.id, network_name=network.name, names=())


def _refusal(network: LocalNetwork, error: SwarmError) -> SwarmError:
    """In Docker's words, with Docker's status for what the managers refuse."""
    text = f"Could not attach to network {network.name}: {rpc_text(error)}"
    status = 500 if status_of(error) in {403, 404} else status_of(error)
    return Refused(status, text)
