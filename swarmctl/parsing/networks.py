"""`--network` of services, and the addresses of `network create`."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from shoal.errors import InvalidArgument
from shoal.model.types import IpamConfig, NetworkAttachmentConfig
from swarmctl.parsing.fields import required, split_fields

IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(text: str) -> NetworkAttachmentConfig:
    """A network of a service: `NAME`, or `name=NAME[,alias=ALIAS...][,ip=ADDRESS...]`.

    Also `driver-opt=KEY=VALUE`. The first address is the first replica's, and so on.
    """
    if "=" not in text:
        if not text:
            raise InvalidArgument("a network needs a name")
        return NetworkAttachmentConfig(target=text)
    target, aliases, addresses, options = "", [], [], {}
    for key, value in split_fields(text):
        if key == "name":
            target = required(value, key=key)
        elif key == "alias":
            aliases.append(required(value, key=key))
        elif key == "ip":
            addresses.append(required(value, key=key))
        elif key == "driver-opt":
            name, equals, option = required(value, key=key).partition("=")
            if not name or not equals:
                raise InvalidArgument(f"{text!r}: write driver-opt=KEY=VALUE")
            options[name] = option
        else:
            raise InvalidArgument(f"{text!r}: unknown key {key!r}: use name, alias, ip, driver-opt")
    if not target:
        raise InvalidArgument(f"{text!r}: name=NETWORK is missing")
    return NetworkAttachmentConfig(target, tuple(aliases), tuple(addresses), options)


def subnet_configs(
    subnets: Iterable[str],
    gateways: Iterable[str],
    ranges: Iterable[str],
    reserved: Mapping[str, str],
) -> tuple[IpamConfig, ...]:
    """Subnets, each with the gateway, range and addresses set aside that lie in it, as in docker.

    Raises InvalidArgument for what lies in none of them, and for a second one of a subnet.
    """
    configs: dict[IpNetwork, dict[str, Any]] = {}
    for text in subnets:
        subnet = _network("--subnet", text)
        if any(subnet.version == one.version and subnet.overlaps(one) for one in configs):
            raise InvalidArgument(f"--subnet {text} overlaps another one of the network")
        configs[subnet] = {"subnet": text, "reserved": {}}
    for flag, texts in (("gateway", gateways), ("ip-range", ranges)):
        for text in texts:
            first = text.partition("/")[0] if flag == "ip-range" else text
            config = _config_of(configs, f"--{flag}", text, first)
            if config.setdefault(flag.replace("-", "_"), text) != text:
                raise InvalidArgument(f"--{flag} {text}: the subnet has another one already")
    for name, text in reserved.items():
        _config_of(configs, f"--aux-address {name}", text, text)["reserved"][name] = text
    return tuple(IpamConfig(**config) for config in configs.values())


def _config_of(
    configs: Mapping[IpNetwork, dict[str, Any]], flag: str, text: str, address: str
) -> dict[str, Any]:
    try:
        number = ipaddress.ip_address(address)
    except ValueError as error:
        raise InvalidArgument(f"{flag} {text}: not an IP address") from error
    for subnet, config in configs.items():
        if number in subnet:
            return config
    raise InvalidArgument(f"{flag} {text}: give the --subnet it lies in")


def _network(flag: str, text: str) -> IpNetwork:
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidArgument(f"{flag} {text}: write ADDRESS/LENGTH") from error
