"""Networks as they are asked for: completed, or refused by name."""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest

from shoal.errors import InvalidArgument, NotFound, PermissionDenied, SwarmError, Unimplemented
from worker.network.local import options
from worker.network.local.api import IpamPool, LocalNetwork

BRIDGE = options.default_bridge("b" * 64, 1, "172.17.0.0/16")
OPTION = "com.docker.network."


def wanted(name: str = "n1", **fields: Any) -> LocalNetwork:
    return LocalNetwork(id="a" * 64, name=name, created_at_ns=1, **fields)


def test_a_default_network_avoids_networks_and_routes():
    made = options.completed(wanted(), [BRIDGE], [ipaddress.ip_network("172.18.0.0/15")])
    assert made.pools == (IpamPool(subnet="172.20.0.0/16", gateway="172.20.0.1"),)
    found = options.bridge_options(made)
    assert (found.bridge, found.mtu, found.talks, found.masquerades, found.prefix) == (
        f"br-{'a' * 12}", 1500, True, True, "eth",
    )  # fmt: skip


def test_every_option_is_honoured():
    given = {
        f"{OPTION}bridge.name": "br7", f"{OPTION}driver.mtu": "1400",
        f"{OPTION}bridge.enable_icc": "false", f"{OPTION}bridge.enable_ip_masquerade": "0",
        f"{OPTION}bridge.host_binding_ipv4": "127.0.0.1", f"{OPTION}container_iface_prefix": "net",
    }  # fmt: skip
    found = options.bridge_options(options.completed(wanted(options=given), [BRIDGE], []))
    assert found == options.BridgeOptions("br7", 1400, False, False, "127.0.0.1", "net")
    assert not options.bridge_options(wanted(internal=True)).masquerades


def test_both_families_are_filled_in():
    made = options.completed(
        wanted(enable_ipv6=True, pools=(IpamPool(subnet="fd00:1::/64"),)), [BRIDGE], []
    )
    assert [pool.subnet for pool in made.pools] == ["172.18.0.0/16", "fd00:1::/64"]
    made = options.completed(wanted(enable_ipv6=True), [BRIDGE], [])
    assert made.pools[1].subnet.startswith("fd")


def test_configuration_networks_lend_what_they_have():
    conf = options.completed(
        wanted("conf", config_only=True, internal=True, pools=(IpamPool(subnet="10.1.0.0/24"),)),
        [BRIDGE], [],
    )  # fmt: skip
    made = options.completed(wanted(config_from="conf"), [BRIDGE, conf], [])
    assert (made.internal, made.pools[0].gateway) == (True, "10.1.0.1")
    with pytest.raises(PermissionDenied, match="not a configuration network"):
        options.completed(wanted(config_from="bridge"), [BRIDGE, conf], [])
    with pytest.raises(PermissionDenied, match="user specified configurations"):
        options.completed(wanted(config_from="conf", internal=True), [BRIDGE, conf], [])


@pytest.mark.parametrize(
    ("fields", "error", "text"),
    [
        ({"driver": "nosuch"}, NotFound, 'plugin "nosuch" not found'),
        ({"driver": "null"}, PermissionDenied, 'only one instance of "null"'),
        ({"driver": "ipvlan"}, Unimplemented, "driver ipvlan"),
        ({"ipam_options": {"a": "b"}}, Unimplemented, "IPAM.Options: a"),
        ({"options": {"x": "y"}}, Unimplemented, "option x"),
        ({"options": {f"{OPTION}bridge.default_bridge": "true"}}, PermissionDenied, "default"),
        ({"options": {f"{OPTION}driver.mtu": "7"}}, InvalidArgument, "not between 68"),
        ({"options": {f"{OPTION}driver.mtu": "x"}}, InvalidArgument, "not a number"),
        ({"options": {f"{OPTION}bridge.enable_icc": "perhaps"}}, InvalidArgument, "boolean"),
        ({"options": {f"{OPTION}bridge.name": 'x" }'}}, InvalidArgument, "an interface"),
        ({"options": {f"{OPTION}bridge.name": "shbr0"}}, PermissionDenied, "in use by network"),
        ({"options": {f"{OPTION}bridge.host_binding_ipv4": "::1"}}, InvalidArgument, "no IPv4"),
        ({"options": {f"{OPTION}container_iface_prefix": "a/b"}}, InvalidArgument, "begins no"),
        ({"pools": (IpamPool(gateway="10.1.0.1"),)}, InvalidArgument, "need a subnet"),
        ({"pools": (IpamPool(subnet="fd00::/64"),)}, InvalidArgument, "needs --ipv6"),
        (
            {"pools": (IpamPool(subnet="10.1.0.0/24"), IpamPool(subnet="10.2.0.0/24"))},
            InvalidArgument, "multiple IPv4 subnets",
        ),
        ({"pools": (IpamPool(subnet="172.17.0.0/24"),)}, PermissionDenied, "Pool overlaps"),
        ({"name": "a b"}, InvalidArgument, "not a valid network name"),
        ({"config_from": "nosuch"}, NotFound, "network nosuch not found"),
    ],
)  # fmt: skip
def test_networks_that_cannot_be(fields: dict[str, Any], error: type[SwarmError], text: str):
    with pytest.raises(error, match=text):
        options.completed(wanted(**fields), [BRIDGE], [])
