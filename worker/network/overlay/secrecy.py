"""Which WireGuard peers a node has, and by which key it speaks to each: pure.

Keys have the cluster's generation; two generations are in use at once. Each has a device of its
own, by parity, so that keys change while packets flow: a node speaks to a peer by the older key
until the peer has proved that it has the newer one. Invariant: whoever shares no generation with
this node is not reachable at all; there is no way around the devices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set

import msgspec

from worker.network.overlay.api import OverlayState
from worker.network.wireguard import KEEPALIVE_S, WireguardPeer

GENERATIONS_MAX = 2

Keys = Mapping[int, bytes]
"""Public keys of one node by generation."""


class Tunnels(msgspec.Struct, frozen=True):
    """The peers of each generation's device, by public key."""

    peers: Mapping[int, Mapping[bytes, WireguardPeer]] = {}

    def generations(self) -> dict[str, list[int]]:
        """By which each peer is known here, the newest first; by its address."""
        found: dict[str, list[int]] = {}
        for generation in sorted(self.peers, reverse=True):
            for peer in self.peers[generation].values():
                found.setdefault(peer.address, []).append(generation)
        return found


def port_of(generation: int, data_path_port: int) -> int:
    """The UDP port of a generation's device: one of the two above the data path's."""
    return data_path_port + 1 + generation % GENERATIONS_MAX


def device_of(generation: int) -> str:
    """The name of a generation's device."""
    return f"wg{generation % GENERATIONS_MAX}"


def tunnels(
    own: Iterable[int], state: OverlayState, own_address: str, data_path_port: int
) -> Tunnels:
    """The peers this node needs: nodes with an endpoint on an encrypted network that it is on.

    own: generations that this node has a key of. Only the newest is kept alive.
    """
    generations = sorted(own)
    addresses = peer_addresses(state, own_address)
    peers: dict[int, dict[bytes, WireguardPeer]] = {one: {} for one in generations}
    for node_id, address in addresses.items():
        keys = state.keys.get(node_id, {})
        for generation in generations:
            if generation in keys:
                peers[generation][keys[generation]] = WireguardPeer(
                    endpoint=address,
                    port=port_of(generation, data_path_port),
                    address=address,
                    keepalive_s=KEEPALIVE_S if generation == generations[-1] else 0,
                )
    return Tunnels(peers)


def peer_addresses(state: OverlayState, own_address: str) -> dict[str, str]:
    """Underlay addresses of those nodes, by node id."""
    encrypted = {one.network_id for one in state.networks if one.encrypted}
    concerned = {one.node_id for one in state.endpoints if one.network_id in encrypted}
    found = {node_id: state.nodes.get(node_id, "") for node_id in sorted(concerned)}
    return {
        node_id: address for node_id, address in found.items() if address not in {"", own_address}
    }


def spoken(wanted: Tunnels, shaken: Mapping[int, Set[str]]) -> dict[str, int]:
    """By which generation each peer is spoken to, by its address.

    shaken: addresses of the peers that have proved to have their key, by generation. The newest
    that both have, once it was proved or where there is no other; else the one before.
    """
    chosen: dict[str, int] = {}
    for address, (newest, *older) in wanted.generations().items():
        is_sure = not older or address in shaken.get(newest, frozenset())
        chosen[address] = newest if is_sure else older[0]
    return chosen


def behind(wanted: Tunnels, chosen: Mapping[str, int]) -> int:
    """How many peers are not spoken to by the newest key that they have."""
    return sum(chosen.get(one) != known[0] for one, known in wanted.generations().items())
