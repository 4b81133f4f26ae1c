"""Bodies of `/networks`, read into a network of the node or of the cluster. Pure."""

from __future__ import annotations

import ipaddress

from engine.containers.requests import Docker, EndpointConfig, spelling
from engine.http.errors import Refused
from shoal.errors import InvalidArgument, NotFound
from shoal.model.specs import NetworkSpec
from shoal.model.types import Annotations, Driver, IpamConfig, IpamOptions
from worker.network.local.api import BRIDGE, IpamPool, LocalNetwork
from worker.network.overlay.containers import DRIVER

SWARM = "swarm"
"""The scope of the cluster's networks."""
_SPELLINGS = {"ipam": "IPAM", "ip_range": "IPRange", "enable_ipv6": "EnableIPv6"}


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


def is_spanning(request: CreateNetwork) -> bool:
    """Whether the network is to be the cluster's."""
    return request.driver == DRIVER or request.scope == SWARM or request.ingress


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


def spanning(request: CreateNetwork) -> NetworkSpec:
    """What is asked for of the cluster. Raises: InvalidArgument, Refused."""
    if not request.name:
        raise InvalidArgument("invalid name: name is empty")
    if request.scope not in {"", SWARM}:
        raise InvalidArgument(
            f"invalid scope: {request.scope}: an {DRIVER} network is the cluster's, leave it out"
        )
    pools = map(_pool, request.ipam.config or ())
    driver = request.ipam.driver or "default"
    return NetworkSpec(
        annotations=Annotations(request.name, request.labels or {}),
        driver=Driver(request.driver or DRIVER, request.options or {}),
        ipv6_enabled=request.enable_ipv6,
        internal=request.internal,
        attachable=request.attachable,
        ingress=request.ingress,
        ipam=IpamOptions(
            driver=Driver(driver, request.ipam.options or {}),
            configs=tuple(
                IpamConfig(one.subnet, one.ip_range, one.gateway, one.reserved) for one in pools
            ),
        ),
        config_from=request.config_from.network,
        config_only=request.config_only,
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
