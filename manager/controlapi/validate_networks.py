"""Rules for overlay networks and for what services ask of them. Pure.

Whether a subnet is free is not decided here (`manager.allocator.networks.subnets`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

from manager.allocator.networks.subnets import DRIVER, IpNetwork
from manager.allocator.networks.wishes import check_addresses, host_address
from manager.controlapi.validate_names import object_labels, object_name
from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.defaults import ENCRYPTED_OPTION
from shoal.model.enums import UpdateOrder
from shoal.model.specs import NetworkSpec, ServiceSpec
from shoal.model.types import IpamConfig, NetworkAttachmentConfig

ATTACHMENTS_MAX = 32
ALIASES_MAX = 64
RESERVED_MAX = 1_024
MTU_OPTION = "com.docker.network.driver.mtu"
MTU_RANGE = range(576, 65_536)
MTU_IPV6_MIN = 1_280
PREDEFINED = frozenset({"bridge", "docker_gwbridge", "host", "ingress", "none"})
"""Names of networks that every node has in Docker: no other may be mistaken for them."""
LENGTH_MAX = {4: 30, 6: 126}
"""Smaller subnets have no address left beside the network's own, gateway and broadcast."""


def network_spec(spec: NetworkSpec) -> None:
    """Refuse a network that cannot be made as it is written."""
    name = spec.annotations.name
    object_name("network name", name)
    object_labels("network labels", spec.annotations)
    if name.lower() in PREDEFINED:
        raise InvalidArgument(f"network name: {name} is predefined: choose another one")
    if spec.driver is not None and spec.driver.name not in {"", DRIVER}:
        raise InvalidArgument(
            f"driver: {spec.driver.name!r} must be {DRIVER}: networks of the cluster span nodes"
        )
    if spec.ingress:
        raise Unimplemented("ingress: the routing mesh is no network here, and always there")
    if spec.config_only:
        raise InvalidArgument(
            "config-only: a configuration network is a node's own, for drivers of one node, and is"
            " made there (`docker network create --config-only`): overlay networks have none"
        )
    if spec.config_from:
        raise InvalidArgument(
            "config-from: configuration networks hold options for drivers of one node: an overlay"
            " network is given its options here"
        )
    _options(spec)
    _ipam(spec)


def attachments(wishes: Sequence[NetworkAttachmentConfig]) -> None:
    """Refuse what a service cannot have of networks; whether they exist is another question."""
    if len(wishes) > ATTACHMENTS_MAX:
        raise InvalidArgument(f"network: {len(wishes)} networks, at most {ATTACHMENTS_MAX}")
    for wish in wishes:
        if not wish.target:
            raise InvalidArgument("network: must be given by name or id")
        check_addresses(wish.addresses)
        if wish.driver_options:
            raise Unimplemented(
                f"network: driver option {min(wish.driver_options)!r} is not known for services"
            )
        if len(wish.aliases) > ALIASES_MAX:
            raise InvalidArgument(
                f"network alias: {len(wish.aliases)} on one network, at most {ALIASES_MAX}"
            )
        for alias in wish.aliases:
            # Each part of a name with dots follows the rules of a name.
            for part in alias.split("."):
                object_name("network alias", part)


def fixed_addresses(spec: ServiceSpec, *, replicas: int) -> None:
    """Refuse a service with addresses of its own whose tasks could not have one each.

    A new task needs the address of the one it replaces, which therefore has to end first.
    """
    for wish in spec.task.networks:
        for version in (4, 6):
            count = sum((":" in address) == (version == 6) for address in wish.addresses)
            if count and count < replicas:
                raise InvalidArgument(
                    f"network: {count} IPv{version} addresses for {replicas} replicas:"
                    " give one for each, or none"
                )
        for name, config in (("update", spec.update), ("rollback", spec.rollback)):
            if wish.addresses and config is not None and config.order is UpdateOrder.START_FIRST:
                raise InvalidArgument(
                    f"{name} order: start-first needs a second address for each task: leave"
                    " addresses (ip=) away, or use stop-first"
                )


def _options(spec: NetworkSpec) -> None:
    for key, value in (spec.driver.options if spec.driver is not None else {}).items():
        if key == ENCRYPTED_OPTION:
            if value not in {"", "true"}:
                raise InvalidArgument(
                    f"driver option {ENCRYPTED_OPTION}: {value!r} must be true or nothing: leave"
                    " the option out for a network in the clear"
                )
            continue
        if key != MTU_OPTION:
            raise InvalidArgument(
                f"driver option: {key!r} is unknown, use {MTU_OPTION} or {ENCRYPTED_OPTION}"
            )
        least = MTU_IPV6_MIN if spec.ipv6_enabled else MTU_RANGE.start
        if not _is_number(value) or not least <= int(value) < MTU_RANGE.stop:
            raise InvalidArgument(
                f"driver option {MTU_OPTION}: {value!r} must be {least} to {MTU_RANGE.stop - 1}"
            )


def _ipam(spec: NetworkSpec) -> None:
    driver = spec.ipam.driver
    if driver is not None and driver.name not in {"", "default"}:
        raise Unimplemented(f"ipam driver: {driver.name!r} is not available, only default")
    if driver is not None and driver.options:
        raise InvalidArgument(f"ipam option: {min(driver.options)!r} is unknown")
    families: set[int] = set()
    for config in spec.ipam.configs:
        version = _config(config)
        if version in families:
            raise Unimplemented(
                f"subnet: more than one IPv{version} subnet is not possible: give a larger one"
            )
        if version == 6 and not spec.ipv6_enabled:
            raise InvalidArgument(f"subnet: {config.subnet} needs IPv6 to be enabled (--ipv6)")
        families.add(version)


def _config(config: IpamConfig) -> int:
    """Check one subnet; the result is its family, 4 or 6."""
    if not config.subnet:
        raise InvalidArgument("subnet: must be given with a gateway, a range or addresses in it")
    subnet = _network("subnet", config.subnet)
    if subnet.is_multicast or subnet.is_loopback or subnet.is_link_local or not subnet.prefixlen:
        raise InvalidArgument(f"subnet: {subnet} is not for hosts: use a private one")
    if subnet.version == 4 and int(subnet.network_address) < 1 << 24:
        raise InvalidArgument(f"subnet: {subnet} is not for hosts: use a private one")
    if subnet.prefixlen > LENGTH_MAX[subnet.version]:
        raise InvalidArgument(
            f"subnet: {subnet} is too small, at most /{LENGTH_MAX[subnet.version]}"
        )
    if config.ip_range:
        limits = _network("ip-range", config.ip_range)
        if limits.version != subnet.version or not _within(limits, subnet):
            raise InvalidArgument(f"ip-range: {limits} must be inside the subnet {subnet}")
    if len(config.reserved) > RESERVED_MAX:
        raise InvalidArgument(f"aux-address: {len(config.reserved)}, at most {RESERVED_MAX}")
    if config.gateway:
        host_address("gateway", config.gateway, subnet)
    aside = [host_address("aux-address", text, subnet) for text in config.reserved.values()]
    if config.gateway and config.gateway in aside:
        raise InvalidArgument(f"aux-address: {config.gateway} is the gateway")
    if len(set(aside)) != len(aside):
        raise InvalidArgument("aux-address: an address is given twice")
    return subnet.version


def _network(field: str, text: str) -> IpNetwork:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidArgument(f"{field}: {text!r} must be ADDRESS/LENGTH") from error
    if str(network) != text:
        raise InvalidArgument(f"{field}: {text} should be {network}")
    return network


def _within(inner: IpNetwork, outer: IpNetwork) -> bool:
    return inner.network_address in outer and inner.broadcast_address in outer


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 7
