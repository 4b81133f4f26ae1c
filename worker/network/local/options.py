"""What a network is asked for, judged and completed. Pure.

Every option of a driver is honoured here or refused by name; texts that clients read are Docker's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from shoal.errors import InvalidArgument, NotFound, PermissionDenied, Unimplemented
from worker.network.local import addresses
from worker.network.local.api import BRIDGE, HOST, NONE, IpamPool, LocalNetwork

DEFAULT_BRIDGE: Final = "shbr0"
NULL_DRIVER: Final = "null"
MTU_DEFAULT: Final = 1500

_DOCKER = "com.docker.network."
_MTU = f"{_DOCKER}driver.mtu"
_DEFAULT = f"{_DOCKER}bridge.default_bridge"
_NAME = f"{_DOCKER}bridge.name"
_ICC = f"{_DOCKER}bridge.enable_icc"
_MASQUERADE = f"{_DOCKER}bridge.enable_ip_masquerade"
_HOST_ADDRESS = f"{_DOCKER}bridge.host_binding_ipv4"
_PREFIX = f"{_DOCKER}container_iface_prefix"
_KNOWN = (_MTU, _NAME, _ICC, _MASQUERADE, _HOST_ADDRESS, _PREFIX)
_NETWORK_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_INTERFACE = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}")
_IFACE_PREFIX = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,9}")
_TRUTHS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}


class BridgeOptions(msgspec.Struct, frozen=True):
    """What a bridge network does, from its options."""

    bridge: str
    mtu: int
    talks: bool
    """Whether its containers reach each other."""
    masquerades: bool
    host_address: str
    prefix: str


def default_bridge(identifier: str, created_at_ns: int, subnet: str) -> LocalNetwork:
    """The network every container is in that names none."""
    options = {
        _DEFAULT: "true",
        _ICC: "true",
        _MASQUERADE: "true",
        _HOST_ADDRESS: "0.0.0.0",  # noqa: S104 - Docker's word for every address
        _NAME: DEFAULT_BRIDGE,
        _MTU: str(MTU_DEFAULT),
    }
    pool = addresses.checked_pool(IpamPool(subnet=subnet))
    return LocalNetwork(
        id=identifier, name=BRIDGE, created_at_ns=created_at_ns, pools=(pool,), options=options
    )


def bridge_options(network: LocalNetwork) -> BridgeOptions:
    """Of a network that was checked. Raises: InvalidArgument."""
    options = network.options
    host_address = options.get(_HOST_ADDRESS, "")
    return BridgeOptions(
        bridge=options.get(_NAME) or f"br-{network.id[:12]}",
        mtu=_number(options, _MTU, MTU_DEFAULT),
        talks=_truth(options, _ICC),
        masquerades=_truth(options, _MASQUERADE) and not network.internal,
        host_address="" if host_address == "0.0.0.0" else host_address,  # noqa: S104
        prefix=options.get(_PREFIX, "eth"),
    )


def completed(
    wanted: LocalNetwork,
    existing: Sequence[LocalNetwork],
    routes: Collection[addresses.Subnet],
) -> LocalNetwork:
    """The network as it will be. routes: of the machine, which defaults must avoid.

    Raises: InvalidArgument, NotFound (driver), PermissionDenied, Unimplemented.
    """
    if not _NETWORK_NAME.fullmatch(wanted.name):
        raise InvalidArgument(
            f'{wanted.name} is not a valid network name: use letters, digits, "_", "." and "-"'
        )
    if wanted.config_from:
        wanted = _from_config(wanted, existing)
    if wanted.config_only:
        return msgspec.structs.replace(wanted, driver=NULL_DRIVER)
    _check_driver(wanted)
    _check_options(wanted, existing)
    return msgspec.structs.replace(wanted, pools=_pools(wanted, existing, routes))


def _check_driver(wanted: LocalNetwork) -> None:
    if wanted.driver in {HOST, NULL_DRIVER}:
        raise PermissionDenied(f'only one instance of "{wanted.driver}" network is allowed')
    if wanted.driver in {"macvlan", "ipvlan", "overlay"}:
        raise Unimplemented(f"driver {wanted.driver}: local networks are bridges on this version")
    if wanted.driver != BRIDGE:
        raise NotFound(f'plugin "{wanted.driver}" not found')
    if wanted.ipam_options:
        name = next(iter(wanted.ipam_options))
        raise Unimplemented(f"IPAM.Options: {name}: the default address management has no options")


def _check_options(wanted: LocalNetwork, existing: Sequence[LocalNetwork]) -> None:
    for name in wanted.options:
        if name == _DEFAULT:
            raise PermissionDenied("default bridge network exists already and cannot be created")
        if name not in _KNOWN:
            raise Unimplemented(f"option {name}: bridge networks have no such option here")
    found = bridge_options(wanted)
    if not _INTERFACE.fullmatch(found.bridge):
        raise InvalidArgument(f"option {_NAME}: {found.bridge!r} is not an interface name")
    if not 68 <= found.mtu <= 65535:
        raise InvalidArgument(f"option {_MTU}: {found.mtu} is not between 68 and 65535")
    if not _IFACE_PREFIX.fullmatch(found.prefix):
        raise InvalidArgument(f"option {_PREFIX}: {found.prefix!r} begins no interface name")
    if (
        found.host_address
        and addresses.parse_address(found.host_address, _HOST_ADDRESS).version == 6
    ):
        raise InvalidArgument(f"option {_HOST_ADDRESS}: {found.host_address} is no IPv4 address")
    for other in existing:
        if other.driver == BRIDGE and bridge_options(other).bridge == found.bridge:
            raise PermissionDenied(
                f"bridge {found.bridge} is in use by network {other.name} ({other.id})"
            )


def _pools(
    wanted: LocalNetwork, existing: Sequence[LocalNetwork], routes: Collection[addresses.Subnet]
) -> tuple[IpamPool, ...]:
    others = subnets(existing)
    asked = tuple(addresses.checked_pool(pool) for pool in wanted.pools if pool.subnet)
    for pool in wanted.pools:
        if not pool.subnet and (pool.gateway or pool.ip_range or pool.reserved):
            raise InvalidArgument("gateway, ip-range and aux-address need a subnet")
    addresses.check_overlaps(asked, others)
    for version in (4, 6):
        if sum(addresses.parse_subnet(pool.subnet).version == version for pool in asked) > 1:
            raise InvalidArgument(f"bridge driver doesn't support multiple IPv{version} subnets")
    if addresses.pool_of(asked, 6) is not None and not wanted.enable_ipv6:
        raise InvalidArgument("an IPv6 subnet needs --ipv6")
    made: list[str] = []
    if addresses.pool_of(asked, 4) is None:
        made.append(str(addresses.default_subnet([*others, *routes])))
    if wanted.enable_ipv6 and addresses.pool_of(asked, 6) is None:
        made.append(str(addresses.default_subnet6(wanted.id)))
    return (*(addresses.checked_pool(IpamPool(subnet=one)) for one in made), *asked)


def subnets(networks: Sequence[LocalNetwork]) -> list[addresses.Subnet]:
    """Every subnet of the networks that are not only configurations."""
    return [
        addresses.parse_subnet(pool.subnet)
        for network in networks
        if not network.config_only
        for pool in network.pools
    ]


def _from_config(wanted: LocalNetwork, existing: Sequence[LocalNetwork]) -> LocalNetwork:
    source = next((one for one in existing if wanted.config_from in {one.name, one.id}), None)
    if source is None:
        raise NotFound(f"network {wanted.config_from} not found")
    if not source.config_only:
        raise PermissionDenied(f"{wanted.config_from} is not a configuration network")
    if wanted.pools or wanted.options or wanted.labels or wanted.internal or wanted.enable_ipv6:
        raise PermissionDenied(
            "user specified configurations are not supported if the network depends on a"
            " configuration network"
        )
    return msgspec.structs.replace(
        wanted, config_from=source.name, pools=source.pools, options=source.options,
        labels=source.labels, internal=source.internal, enable_ipv6=source.enable_ipv6,
    )  # fmt: skip


def is_predefined(name: str) -> bool:
    """Whether it is there always."""
    return name in {BRIDGE, HOST, NONE}


def _number(options: Mapping[str, str], name: str, default: int) -> int:
    text = options.get(name, "")
    if not text:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise InvalidArgument(f"option {name}: {text!r} is not a number")
    return int(text)


def _truth(options: Mapping[str, str], name: str) -> bool:
    text = options.get(name, "").lower()
    if not text:
        return True
    if text not in _TRUTHS:
        raise InvalidArgument(f"option {name}: {text!r} is not a boolean")
    return _TRUTHS[text]
