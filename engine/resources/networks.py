"""`/networks`: the node's own networks and those of the cluster, and who is in them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

from engine.cluster.client import ClusterClient
from engine.containers import selection
from engine.containers.inspect import time_text
from engine.containers.parts import ContainerParts
from engine.containers.requests import Docker, EndpointConfig, spelling
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.errors import Refused
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.ports import Event
from shoal.errors import InvalidArgument, NotFound, PermissionDenied, Unimplemented
from worker.network.local.api import BRIDGE, PREDEFINED, Endpoint, IpamPool, LocalNetwork
from worker.network.local.api import LocalNetworks as Networks
from worker.network.overlay.containers import DRIVER

_LIST_FILTERS = ("dangling", "driver", "id", "label", "name", "scope", "type")
_PRUNE_FILTERS = ("label", "label!", "until")
_SPELLINGS = {"ipam": "IPAM", "ip_range": "IPRange", "enable_ipv6": "EnableIPv6"}
_TYPES = {"custom", "builtin"}


def _spelling(name: str) -> str:
    return _SPELLINGS.get(name) or spelling(name)


class PoolRequest(Docker, frozen=True, kw_only=True, rename=_spelling):
    """One subnet of a network to be made."""

    subnet: str = ""
    ip_range: str = ""
    gateway: str = ""
    auxiliary_addresses: dict[str, str] | None = None


class IpamRequest(Docker, frozen=True, kw_only=True, rename=_spelling):
    """Who manages its addresses, and which there are."""

    driver: str = ""
    options: dict[str, str] | None = None
    config: list[PoolRequest] | None = None


class ConfigReference(Docker, frozen=True, kw_only=True):
    """The configuration network it is made from."""

    network: str = ""


class CreateNetwork(Docker, frozen=True, kw_only=True, rename=_spelling):
    """`POST /networks/create`."""

    name: str = ""
    driver: str = ""
    scope: str = ""
    internal: bool = False
    attachable: bool = False
    ingress: bool = False
    config_only: bool = False
    config_from: ConfigReference = ConfigReference()
    enable_ipv6: bool = False
    ipam: IpamRequest = IpamRequest()
    options: dict[str, str] | None = None
    labels: dict[str, str] | None = None


class ConnectRequest(Docker, frozen=True, kw_only=True):
    """`POST /networks/{id}/connect` and `disconnect`."""

    container: str = ""
    endpoint_config: EndpointConfig = EndpointConfig()
    force: bool = False


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
        await self._networks.refresh()
        chosen = [one for one in self._networks.list() if self._is_wished(one, filters)]
        return json_answer([worded(one) for one in chosen])

    async def create(self, call: Call) -> Answer:
        request = await call.body(CreateNetwork)
        if _is_spanning(request):
            await self._refuse_spanning()
        made = await self._networks.create(wanted(request))
        return json_answer({"Id": made.id, "Warning": ""}, 201)

    async def _refuse_spanning(self) -> None:
        refusal = (await self._cluster.standing()).refusal
        if refusal:
            raise Refused(500, refusal)
        raise Unimplemented(
            "networks of the cluster are not made through the Docker API on this version: use"
            " `swarmctl network create`"
        )

    async def inspect(self, call: Call) -> Answer:
        await self._networks.refresh()
        network = self._networks.resolve(call.path["id"])
        if call.query.text("scope") not in {"", scope_of(network)}:
            raise NotFound(f"network {call.path['id']} not found")
        names = {one.id: one.name for one in self._parts.containers.all()}
        places = {
            endpoint.container: _place(endpoint, names.get(endpoint.container, ""))
            for endpoint in self._networks.endpoints(network.id)
        }
        return json_answer(worded(network) | {"Containers": places})

    async def remove(self, call: Call) -> Answer:
        await self._networks.remove(call.path["id"])
        return empty(204)

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
            used = builtin or bool(self._networks.endpoints(network.id))
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


def _is_spanning(request: CreateNetwork) -> bool:
    """Whether the network is to be the cluster's."""
    return request.driver == "overlay" or request.scope == "swarm" or request.ingress


def wanted(request: CreateNetwork) -> LocalNetwork:
    """What is asked for, in the networks' words. Raises: InvalidArgument, Refused."""
    if not request.name:
        raise InvalidArgument("invalid name: name is empty")
    driver = request.driver or BRIDGE
    if request.scope not in {"", "local"}:
        raise InvalidArgument(f"invalid scope: {request.scope}")
    if request.ipam.driver not in {"", "default"}:
        raise NotFound(f'plugin "{request.ipam.driver}" not found')
    return LocalNetwork(
        id="",
        name=request.name,
        created_at_ns=0,
        driver=driver,
        pools=tuple(map(_pool, request.ipam.config or ())),
        internal=request.internal,
        attachable=request.attachable,
        enable_ipv6=request.enable_ipv6,
        options=request.options or {},
        ipam_options=request.ipam.options or {},
        labels=request.labels or {},
        config_only=request.config_only,
        config_from=request.config_from.network,
    )


def _pool(request: PoolRequest) -> IpamPool:
    for text, field in ((request.subnet, "subnet"), (request.ip_range, "ip-range")):
        if text:
            _check_cidr(text, field)
    return IpamPool(
        subnet=request.subnet,
        ip_range=request.ip_range,
        gateway=request.gateway,
        reserved=request.auxiliary_addresses or {},
    )


def _check_cidr(text: str, field: str) -> None:
    """Docker's words and status for what is no subnet at all."""
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        interface = None
    if interface is None or "/" not in text:
        raise Refused(500, f"Invalid {field} {text} : invalid CIDR address: {text}")
    if interface.ip != interface.network.network_address:
        raise InvalidArgument(f"invalid {field} {text}: it should be {interface.network}")


def scope_of(network: LocalNetwork) -> str:
    """Whose it is: the node's, or the cluster's."""
    return "swarm" if network.driver == DRIVER else "local"


def worded(network: LocalNetwork) -> dict[str, Any]:
    """A network in Docker's words, without its containers."""
    return {
        "Name": network.name,
        "Id": network.id,
        "Created": time_text(network.created_at_ns),
        "Scope": scope_of(network),
        "Driver": network.driver,
        "EnableIPv6": network.enable_ipv6,
        "IPAM": {
            "Driver": "default",
            "Options": None if network.name in PREDEFINED else network.ipam_options,
            "Config": [_pool_words(pool) for pool in network.pools],
        },
        "Internal": network.internal,
        "Attachable": network.attachable,
        "Ingress": False,
        "ConfigFrom": {"Network": network.config_from},
        "ConfigOnly": network.config_only,
        "Containers": {},
        "Options": network.options,
        "Labels": network.labels,
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
