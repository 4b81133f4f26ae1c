"""The networks that every node has: none, host, and the default bridge. Looks at the machine."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence

from worker.network.local import options
from worker.network.local.addresses import default_subnet, overlap
from worker.network.local.api import BRIDGE, HOST, NONE, LocalNetwork
from worker.network.local.kernel import has_device, machine_subnets

ID_BYTES = 32


def with_predefined(stored: Sequence[LocalNetwork], now_ns: int) -> dict[str, LocalNetwork]:
    """The stored networks by id, and those of these that were not among them."""
    networks = {one.id: one for one in stored}
    names = {one.name for one in stored}
    for name, driver in ((NONE, options.NULL_DRIVER), (HOST, HOST)):
        if name not in names:
            fresh = LocalNetwork(
                id=secrets.token_hex(ID_BYTES), name=name, created_at_ns=now_ns, driver=driver
            )
            networks[fresh.id] = fresh
    bridge = _default_bridge(networks, now_ns)
    networks[bridge.id] = bridge
    return networks


def _default_bridge(networks: Mapping[str, LocalNetwork], now_ns: int) -> LocalNetwork:
    """As it was, unless its device is gone and its subnet is somebody else's by now."""
    stored = next((one for one in networks.values() if one.name == BRIDGE), None)
    others = [one for one in networks.values() if one.name != BRIDGE]
    taken = [*machine_subnets((options.DEFAULT_BRIDGE,)), *options.subnets(others)]
    if stored is None:
        identifier = secrets.token_hex(ID_BYTES)
        return options.default_bridge(identifier, now_ns, str(default_subnet(taken)))
    mine = options.subnets([stored])
    if has_device(options.DEFAULT_BRIDGE) or not overlap(mine, taken):
        return stored
    return options.default_bridge(stored.id, stored.created_at_ns, str(default_subnet(taken)))
