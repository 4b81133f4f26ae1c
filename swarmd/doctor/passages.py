"""Which packets must get through the packet filters of others, and what to say where they do not.

Pure. Our own tables accept what is ours, but that ends only the chain it stands in: a chain of
anybody else, at the same hook, may still drop the packet. Our tables are the only ones we write to,
so the remedy is a command for whoever runs the machine, made for the very chain that drops.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from swarmd.doctor.core import Finding, Level
from swarmd.doctor.firewall import Blocked, Packet, Table, blocks

FORWARD: Final = ("prerouting", "forward", "postrouting")
INPUT: Final = ("prerouting", "input")
OUTPUT: Final = ("output", "postrouting")
CHECK: Final = "firewall"
_IPV4, _IPV6 = "ipv4", "ipv6"
_FAMILIES: Final = {_IPV4: ("ip", "inet"), _IPV6: ("ip6", "inet")}
"""Tables that see packets of each version."""
_DNAT: Final = {"ct status": "dnat"}
_TASK: Final = "gt0"
"""Stands for every task's link: they are called `gt` and a number."""
_LINKS: Final = "gt*"
_FIREWALLD: Final = "firewalld"
_DOCKER: Final = "DOCKER-USER"


class Ways(msgspec.Struct, frozen=True, kw_only=True):
    """Between what packets go here. underlay: device to the other nodes and to clients.

    tunnel: the mesh's device, "" without one; bridges: of the node's own networks; peers: addresses
    of the other nodes; data_path_port: UDP; sealed_ports: UDP, of encrypted networks while some are
    here; manager_port: TCP, 0 where no manager runs.
    """

    underlay: str
    tunnel: str = ""
    tunnel_ipv6: bool = False
    bridges: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    data_path_port: int = 0
    sealed_ports: tuple[int, ...] = ()
    manager_port: int = 0


class Passage(msgspec.Struct, frozen=True):
    """A packet that must get through."""

    what: str
    packet: dict[str, str]
    hooks: tuple[str, ...]


def passages(ways: Ways) -> Iterator[Passage]:
    """Everything that must get through, the first packet of a connection and its answer."""
    out = ways.underlay
    for version in _versions(ways):
        tunnel, more = ways.tunnel, {"nfproto": version}
        yield from _through(out, _TASK, "requests to tasks", **more, **_DNAT)
        yield from _through(out, tunnel, "requests to tasks of other nodes", **more, **_DNAT)
        yield from _through(tunnel, _TASK, "requests from other nodes to tasks", **more)
        yield from _through(_TASK, out, "what tasks send out", **more)
    for bridge in ways.bridges:
        more = {"nfproto": _IPV4}
        yield from _through(out, bridge, f"requests to containers on {bridge}", **more, **_DNAT)
        yield from _through(bridge, out, f"what containers on {bridge} send out", **more)
        yield from _through(bridge, bridge, f"what containers on {bridge} send each other", **more)
    data_path = (ways.data_path_port,) if ways.data_path_port else ()
    for port in (*data_path, *ways.sealed_ports):
        name = "the data path" if port == ways.data_path_port else "encrypted networks"
        udp = {"nfproto": _IPV4, "l4proto": "udp", "dport": str(port), "ct state": "new"}
        for peer in ways.peers:
            what = f"{name} ({port}/udp)"
            yield Passage(what, {"iifname": out, "saddr": peer, **udp}, INPUT)
            yield Passage(what, {"oifname": out, "daddr": peer, **udp}, OUTPUT)
    if ways.manager_port:
        port = str(ways.manager_port)
        tcp = {"nfproto": _IPV4, "l4proto": "tcp", "dport": port, "ct state": "new"}
        yield Passage(f"calls to the manager ({port}/tcp)", {"iifname": out, **tcp}, INPUT)


def _versions(ways: Ways) -> tuple[str, ...]:
    """Those of IP that the mesh has here."""
    if not ways.tunnel:
        return ()
    return (_IPV4, _IPV6) if ways.tunnel_ipv6 else (_IPV4,)


def filtered(tables: Sequence[Table], ways: Ways) -> list[Finding]:
    """One finding for each chain that is in the way; one that says so when none is."""
    held: dict[Blocked, list[Passage]] = {}
    for passage in passages(ways):
        families = _FAMILIES[passage.packet["nfproto"]]
        concerned = [table for table in tables if table.family in families]
        for blocked in blocks(concerned, passage.packet, passage.hooks):
            held.setdefault(blocked, []).append(passage)
    if not held:
        return [Finding(CHECK, Level.OK, "no packet filter is in the way")]
    return [_finding(blocked, found, tables, ways) for blocked, found in sorted(held.items())]


def _through(source: str, target: str, what: str, **more: str) -> Iterator[Passage]:
    """more: what else is known of the packets of both directions."""
    there = {"iifname": source, "oifname": target, "ct state": "new", **more}
    back = {"iifname": target, "oifname": source, "ct state": "established", **more}
    yield Passage(what, there, FORWARD)
    yield Passage(what, back, FORWARD)


def _finding(
    blocked: Blocked, found: Sequence[Passage], tables: Sequence[Table], ways: Ways
) -> Finding:
    where = f"{blocked.tool}: chain {blocked.chain} of table {blocked.family} {blocked.table}"
    what = ", ".join(dict.fromkeys(passage.what for passage in found))
    forwarded = [one.packet for one in found if one.hooks == FORWARD]
    ports = [(one.packet["l4proto"], one.packet["dport"]) for one in found if one.hooks != FORWARD]
    at_all = list(dict.fromkeys(ports))
    if blocked.tool == "nft" and blocked.table == _FIREWALLD:
        names = [name for packet in forwarded for _, name in _ours(packet, ways)]
        remedy = _firewalld(list(dict.fromkeys(names)), at_all)
    else:
        interfaces = [_ours(packet, ways)[0] for packet in forwarded]
        remedy = _rules(blocked, list(dict.fromkeys(interfaces)), at_all, tables)
    check = f"{CHECK} {blocked.table} {blocked.chain}"
    return Finding(check, Level.PROBLEM, f"{where} drops {what}", " && ".join(remedy))


def _ours(packet: Packet, ways: Ways) -> list[tuple[str, str]]:
    """Direction and name of the interfaces of ours that a forwarded packet goes by; tunnel last."""
    return [
        (direction, packet[direction].replace(_TASK, _LINKS))
        for ours in ((_TASK, *ways.bridges), (ways.tunnel,))
        for direction in ("oifname", "iifname")
        if packet[direction] in ours
    ]


def _rules(
    blocked: Blocked,
    interfaces: Sequence[tuple[str, str]],
    ports: Sequence[tuple[str, str]],
    tables: Sequence[Table],
) -> Iterator[str]:
    """The commands, in the words of whoever made the chain."""
    if blocked.tool == "nft":
        at = f"nft insert rule {blocked.family} {blocked.table} {blocked.chain}"
        yield from (f"{at} {direction} '\"{name}\"' accept" for direction, name in interfaces)
        yield from (f"{at} {protocol} dport {port} accept" for protocol, port in ports)
    else:
        at = f"{blocked.tool} -I {_entry(blocked, tables)}"
        for direction, name in interfaces:
            yield f"{at} -{direction[0]} {name.replace('*', '+')} -j ACCEPT"
        yield from (f"{at} -p {protocol} --dport {port} -j ACCEPT" for protocol, port in ports)


def _firewalld(interfaces: Sequence[str], ports: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name in interfaces:
        trusted = name.replace("*", "+")
        yield f"firewall-cmd --permanent --zone=trusted --add-interface={trusted}"
    yield from (f"firewall-cmd --permanent --add-port={port}/{kind}" for kind, port in ports)
    yield "firewall-cmd --reload"


def _entry(blocked: Blocked, tables: Sequence[Table]) -> str:
    """Docker's chain for the rules of others stays when Docker makes its own anew."""
    for table in tables:
        if (table.tool, table.name) == (blocked.tool, blocked.table) and _DOCKER in table.chains:
            return _DOCKER if blocked.hook == "forward" else blocked.chain
    return blocked.chain
