"""The whole examination of this node: looks everywhere, then says what is wrong.

A look at one thing never keeps the others from being looked at; every wait has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from shoal.clock import Clock
from shoal.settings.node import NodeConfig
from swarmd.doctor import look
from swarmd.doctor.core import Facts, Finding, Heard, Level, findings
from swarmd.doctor.filters import read_filters
from swarmd.doctor.managers import hear
from swarmd.doctor.passages import CHECK, Ways, filtered
from swarmd.node import Membership


async def examine(
    membership: Membership,
    *,
    not_ready: Mapping[str, str],
    peers: Sequence[look.Peer],
    clock: Clock,
) -> list[Finding]:
    """peers: the other nodes, as far as they are known."""
    config = membership.config
    address = "" if config is None else config.data_path_address
    underlay, underlay_mtu = look.device_with(address)
    tunnel = look.tunnel()
    mesh_mtu = None if tunnel is None else tunnel.mtu
    reached, heard, filters = await asyncio.gather(
        look.reach(peers, mesh_mtu),
        _managers(membership, clock),
        _filters(config, underlay, tunnel, peers, is_manager=membership.is_manager),
    )
    facts = Facts(
        joined=config is not None,
        reduced=look.reduced(),
        not_ready=not_ready,
        has_nft=look.has_nft(),
        no_encryption=await asyncio.to_thread(look.why_no_encryption),
        settings=look.settings(),
        vxlan_mtu=mesh_mtu,
        data_path_port=0 if tunnel is None else tunnel.port,
        data_path_address=address,
        underlay=underlay,
        underlay_mtu=underlay_mtu,
        clock_synchronized=look.clock_is_synchronized(),
        peers=reached,
        managers=heard,
    )
    return [*findings(facts), *filters]


async def _managers(membership: Membership, clock: Clock) -> tuple[Heard, ...]:
    """The other managers; this node's own has this node's clock."""
    if membership.identity is None or membership.config is None:
        return ()
    own = membership.config.advertise_address if membership.is_manager else ""
    others = [address for address in membership.managers if address != own]
    return await hear(others, membership.identity, clock)


async def _filters(
    config: NodeConfig | None,
    underlay: str,
    tunnel: look.Tunnel | None,
    peers: Sequence[look.Peer],
    *,
    is_manager: bool,
) -> list[Finding]:
    """What the packet filters of others keep from getting through."""
    found = await read_filters()
    ways = Ways(
        underlay=underlay,
        tunnel=look.TUNNEL if tunnel is not None else "",
        tunnel_ipv6=look.tunnel_has_ipv6(),
        bridges=found.bridges,
        peers=tuple(peer.address for peer in peers),
        data_path_port=0 if tunnel is None else tunnel.port,
        sealed_ports=() if tunnel is None else look.sealed_ports(tunnel.port),
        manager_port=_port(config) if is_manager else 0,
    )
    remedy = "look at the packet filters yourself, or install what is missing"
    unread = [Finding(CHECK, Level.WARNING, why, remedy) for why in found.unread]
    return [*unread, *filtered(found.tables, ways)]


def _port(config: NodeConfig | None) -> int:
    return 0 if config is None else int(config.listen_address.rpartition(":")[2])
