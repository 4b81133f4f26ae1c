"""`/networks`: the node's own networks and those of the cluster, and who is in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from engine.cluster.client import ClusterClient
from engine.containers import selection
from engine.containers.inspect import time_text
from engine.containers.parts import ContainerParts
from engine.containers.spanning import find
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.errors import Refused
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.ports import Event
from engine.resources.network_requests import (
    SWARM,
    ConnectRequest,
    CreateNetwork,
    is_spanning,
    spanning,
    wanted,
)
from shoal.docker.networks import network_json
from shoal.errors import InvalidArgument, NameConflict, NotFound, PermissionDenied, SwarmError
from worker.agent.attachments import as_local
from worker.network.local.api import PREDEFINED, Endpoint, IpamPool, LocalNetwork
from worker.network.local.api import LocalNetworks as Networks
from worker.network.overlay.containers import DRIVER

_LIST_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
_PRUNE_FILTERS = ("label", "label!", "until")
_TYPES = {"custom", "builtin"}
LET_GO_S = 45.0
LET_GO_POLL_S = 0.25


def routes(parts: ContainerParts, networks: Networks, cluster: ClusterClient) -> Iterable[Route]:
    """All operations."""
    resource = _Resource(parts, networks, cluster)
    yield Route("GET", "/networks", resource.list)
    yield Route("POST", "/networks/create", resource.create)
    yield Route("POST", "/networks/prune", resource.prune)
    yield Route("GET", "/networks/{id}", resource.inspect)
    yield Route("DELETE", "/networks/{id}", resource.remove)
    yield Route("POST", "/networks/{id}/connect", resource.connect)
    yield Route("POST", "/networks/{id}/disconnect", resource.disconnect)


class _Resource:
    def __init__(self, parts: ContainerParts, networks: Networks, cluster: ClusterClient) -> None:
        self._parts = parts
        self._cluster = cluster
        self._networks = networks

    async def list(self, call: Call) -> Answer:
        filters = call.query.filters(_LIST_FILTERS)
        for kind in filters.values("type"):
            if kind not in _TYPES:
                raise InvalidArgument(f"invalid filter: 'type'='{kind}'")
        chosen = [one for one in await self._known() if self._is_wished(one, filters)]
        return json_answer([worded(one) for one in chosen])

    async def _known(self) -> Sequence[LocalNetwork]:
        """The node's networks and the cluster's, by name: on a manager as the managers have them.

        Elsewhere, and while no manager answers, those of the cluster that the node has heard of.
        """
        await self._networks.refresh()
        known = self._networks.list()
        try:
            if (await self._cluster.standing()).refusal:
                return known
            spanning = map(as_local, await self._cluster.networks())
        except SwarmError:
            return known
        both = [*(one for one in known if one.driver != DRIVER), *spanning]
        return sorted(both, key=lambda one: (one.name, one.id))

    def _endpoints(self, network: LocalNetwork) -> Sequence[Endpoint]:
        """The node's containers that are on it."""
        try:
            return self._networks.endpoints(network.id)
        except NotFound:  # the cluster's, and the node has not heard of it yet
            return ()

    async def create(self, call: Call) -> Answer:
        request = await call.body(CreateNetwork)
        if not is_spanning(request):
            made = await self._networks.create(wanted(request))
            return json_answer({"Id": made.id, "Warning": ""}, 201)
        refusal = (await self._cluster.standing()).refusal
        if refusal:
            raise Refused(500, refusal)
        spec = spanning(request)
        if any(one.name == request.name for one in await self._known()):
            raise NameConflict(f"network with name {request.name} already exists")
        made_id = await self._cluster.create_network(spec)
        return json_answer({"Id": made_id, "Warning": ""}, 201)

    async def inspect(self, call: Call) -> Answer:
        network = find(await self._known(), call.path["id"])
        if call.query.text("scope") not in {"", scope_of(network)}:
            raise NotFound(f"network {call.path['id']} not found")
        names = {one.id: one.name for one in self._parts.containers.all()}
        places = {
            endpoint.container: _place(endpoint, names.get(endpoint.container, ""))
            for endpoint in self._endpoints(network)
        }
        found = worded(network)
        if places or network.driver != DRIVER:
            found["Containers"] = places
        if network.driver == DRIVER and call.query.flag("verbose"):
            found |= await self._users(network.id)
        return json_answer(found)

    async def _users(self, network: str) -> dict[str, Any]:
        """Who in the cluster is on one of its networks; nothing on a node that is no manager."""
        if (await self._cluster.standing()).refusal:
            return {}
        words = network_json(
            await self._cluster.network(network),
            services=[service for service, _ in await self._cluster.services()],
            tasks=await self._cluster.tasks(),
            nodes=await self._cluster.nodes(),
        )
        return {name: words[name] for name in ("Services", "Containers", "Peers")}

    async def remove(self, call: Call) -> Answer:
        network = find(await self._known(), call.path["id"])
        if network.driver == DRIVER:
            await self._remove_spanning(network.id)
        else:
            await self._networks.remove(network.id)
        return empty(204)

    async def _remove_spanning(self, network: str) -> None:
        """Return when it is gone, or will be: tasks that are on their way out keep it until then.

        A stack's networks are removed right after it, and made again under the same names.
        """
        await self._cluster.remove_network(network)
        with suppress(NotFound, TimeoutError):
            async with asyncio.timeout(LET_GO_S):
                while True:
                    await self._cluster.network(network)
                    await asyncio.sleep(LET_GO_POLL_S)

    async def connect(self, call: Call) -> Answer:
        request = await call.body(ConnectRequest)
        await self._parts.connections.connect(
            call.path["id"], request.container, request.endpoint_config
        )
        return empty(200)

    async def disconnect(self, call: Call) -> Answer:
        request = await call.body(ConnectRequest)
        await self._parts.connections.disconnect(
            call.path["id"], request.container, force=request.force
        )
        return empty(200)

    async def prune(self, call: Call) -> Answer:
        filters = call.query.filters(_PRUNE_FILTERS)
        until_ns = selection.until_ns(filters, self._parts.needs.clock.now_ns())
        removed = []
        for network in self._networks.list():
            late = until_ns is not None and network.created_at_ns > until_ns
            wished = filters.matches_labels(network.labels) and filters.lacks_labels(network.labels)
            spared = network.name in PREDEFINED or network.driver == DRIVER
            if spared or late or not wished:
                continue
            try:
                await self._networks.remove(network.id)
            except (NotFound, PermissionDenied):
                continue  # it is used, or somebody was faster
            removed.append(network.name)
        self._parts.needs.events.publish(Event("network", "prune", "", {"reclaimed": "0"}))
        return json_answer({"NetworksDeleted": removed or None})

    def _is_wished(self, network: LocalNetwork, filters: Filters) -> bool:
        builtin = network.name in PREDEFINED
        if "dangling" in filters:
            used = builtin or bool(self._endpoints(network))
            if used == filters.flag("dangling", default=False):
                return False
        return (
            filters.matches("driver", network.driver)
            and filters.matches_part("id", network.id)
            and filters.matches_part("name", network.name)
            and filters.matches("scope", scope_of(network))
            and filters.matches("type", "builtin" if builtin else "custom")
            and filters.matches_labels(network.labels)
        )


def scope_of(network: LocalNetwork) -> str:
    """Whose it is: the node's, or the cluster's."""
    return SWARM if network.driver == DRIVER else "local"


def worded(network: LocalNetwork) -> dict[str, Any]:
    """A network in Docker's words, without its containers."""
    spans = network.driver == DRIVER
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": time_text(network.created_at_ns),
        "Scope": scope_of(network),
        "Driver": network.driver,
        "EnableIPv6": network.enable_ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": None if network.name in PREDEFINED or spans else network.ipam_options,
            "Config": [_pool_words(pool) for pool in network.pools],
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.config_only,
        "Containers": None if spans else {},
        "Options": network.options,
        "Labels": (network.labels or None) if spans else network.labels,
    }


def _pool_words(pool: IpamPool) -> dict[str, Any]:
    words: dict[str, Any] = {
        "Subnet": pool.subnet,
        "IPRange": pool.ip_range,
        "Gateway": pool.gateway,
        "AuxiliaryAddresses": pool.reserved,
    }
    return {key: value for key, value in words.items() if value}


def _place(endpoint: Endpoint, name: str) -> dict[str, str]:
    four, six = endpoint.ipv4_address, endpoint.ipv6_address
    return {
        "Name": name,
        "EndpointID": endpoint.id,
        "MacAddress": endpoint.mac_address,
        "IPv4Address": f"{four}/{endpoint.ipv4_prefix}" if four else "",
        "IPv6Address": f"{six}/{endpoint.ipv6_prefix}" if six else "",
    }
