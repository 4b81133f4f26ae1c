"""The node's nft ruleset: text loaded once, with maps that everything later only adds elements to.

Invariant: the table's comment is the version of the text that made it. `load` does nothing if the
version is there already, so a restart touches no rule and no connection; if the version differs it
replaces the table in one transaction that carries the old elements over. Only table `inet shoal` is
ever named; no ruleset is flushed. Every construct here was run on nft 1.0.6 (which, for one, cannot
print a map declared with jhash: the sticky maps are declared with numgen, the same key).
"""

from __future__ import annotations

import hashlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from shoal.errors import Internal, Unimplemented
from worker.network.api import NetworkSettings
from worker.network.core import NARROW_SLOTS, PROTOCOLS, WIDE_SLOTS, gateway_of
from worker.network.features import Features, reduced, suffix_of
from worker.network.nft import (
    TABLE,
    parse_endpoint,
    parse_placed_key,
    parse_port_key,
    parse_slot_key,
    port_key,
    slot_key,
)
from worker.network.slots import SLOT_MAPS, SPLIT, SlotMap, split, split_name
from worker.network.twins import twin

_FAMILIES: Final = {4: "ip", 6: "ip6"}
_PLACES: Final = {"": "", "_at": "ipv4_addr . ", "_at6": "ipv6_addr . "}
PORT_SETS: Final = {
    f"{name}{kind}": f"{front}inet_proto . inet_service"
    for name in ("pub", "by_node")
    for kind, front in _PLACES.items()
}
"""Type of the key of each set of published ports, by name; see `places.py`."""
_NFT_DEADLINE_S = 60.0
"""The first time a dozen modules are loaded; on a slow machine they take more than 20 s."""
ALL_FEATURES: Final = Features()
Elements = Mapping[str, Mapping[bytes, bytes]]

_TEMPLATE = """
table inet shoal {{
  comment "{version}"
  set nodes {{ type ipv4_addr; {nodes}}}
  set nodes6 {{ type ipv6_addr; {nodes6}}}
  set self4 {{ type ipv4_addr . ipv4_addr; {self4}}}
  set self6 {{ type ipv6_addr . ipv6_addr; {self6}}}
{port_sets}
  set reserved {{ type inet_proto . inet_service; {reserved}}}
  set resting {{ type ipv4_addr; flags timeout; }}
  map node_mac {{ type ether_addr : mark; {node_mac}}}
{zone_map}
{maps}
  # route_localnet lets 127.0.0.0/8 in from outside; this keeps it out.
  chain guard {{ type filter hook prerouting priority raw;
    iifname != "lo" ip daddr 127.0.0.0/8 drop
  }}
  # VXLAN knows no authentication: only members of the cluster may send us frames, over IPv4.
  chain vtep {{ type filter hook input priority raw;
    udp dport {port} ip saddr != @nodes drop
    meta nfproto ipv6 udp dport {port} drop
  }}
{zone_chain}
  # Remember through which node a connection came; the reply is routed back by this mark.
  chain mark_in {{ type filter hook prerouting priority mangle;
    iifname "vxi" ct state new ct mark set ether saddr map @node_mac
    iifname "gt*" ct direction reply ct mark & {mask} != 0 meta mark set ct mark
  }}
  chain lb {{
    # Nobody forwards to or from an address that means another machine on each link.
    ip6 saddr fe80::/10 return
{lb}
  }}
{slot_chains}
  chain pre_nat {{ type nat hook prerouting priority dstnat - 5;
    fib daddr type local jump lb
  }}
  chain out_nat {{ type nat hook output priority -105;
    fib daddr type local jump lb
  }}
  # A published port without a ready task is refused, and never reaches a process of the host.
  # Also for the node itself: refusing in the output hook would give UDP senders EPERM instead.
  chain in_filter {{ type filter hook input priority filter - 5;
    ct state new meta l4proto . th dport @pub jump refuse
    ct state new ip daddr . meta l4proto . th dport @pub_at jump refuse
    ct state new ip6 daddr . meta l4proto . th dport @pub_at6 jump refuse
  }}
  # For SCTP the kernel itself does: what holds the port does not listen, and clients are aborted.
  chain refuse {{
    meta l4proto sctp return
    meta l4proto tcp reject with tcp reset
    reject with icmpx type port-unreachable
  }}
  # Tasks are reached through published ports only, from wherever; peers have checked already.
  chain fwd_filter {{ type filter hook forward priority filter - 5;
    iifname "vxi" oifname "vxi" drop
    iifname "vxi" oifname != "gt*" ct state new drop
    oifname "vxi" tcp flags syn tcp option maxseg size set rt mtu
    iifname "vxi" oifname "gt*" accept
    oifname {{ "gt*", "vxi" }} ct state established,related accept
    oifname {{ "gt*", "vxi" }} ct status dnat accept
    oifname {{ "gt*", "vxi" }} drop
  }}
  chain post_nat {{ type nat hook postrouting priority srcnat - 5;
{no_zone_rules}
    oifname "gt*" ct status dnat ip saddr . ip daddr @self4 snat ip to {gateway}
    oifname {{ "gt*", "vxi" }} ip saddr 127.0.0.0/8 snat ip to {gateway}
    oifname "vxi" ct status dnat ip saddr @nodes snat ip to {gateway}
    oifname "vxi" ct status dnat meta nfproto ipv4 fib saddr type local snat ip to {gateway}
    oifname "gt*" ct status dnat ip6 saddr . ip6 daddr @self6 snat ip6 to {gateway6}
    oifname {{ "gt*", "vxi" }} ip6 saddr ::1 snat ip6 to {gateway6}
    oifname "vxi" ct status dnat ip6 saddr @nodes6 snat ip6 to {gateway6}
    oifname "vxi" ct status dnat meta nfproto ipv6 fib saddr type local snat ip6 to {gateway6}
{by_node_rules}
    iifname "gt*" oifname != {{ "gt*", "vxi", "lo" }} masquerade
  }}
  # VXLAN routes its outer packet by the inner packet's mark: without this it would loop.
  chain clear {{ type filter hook postrouting priority srcnat + 10;
    oifname "vxi" meta mark & {mask} != 0 meta mark set meta mark & {rest}
  }}
}}
"""


_ZONE_MAP: Final = "  map node_zone {{ typeof ether saddr : ct zone; {elements}}}"
_ZONE_CHAIN: Final = """
  # The same client address and port may arrive through two nodes: tell the connections apart.
  chain zone { type filter hook prerouting priority raw + 10;
    iifname "vxi" ct original zone set ether saddr map @node_zone
  }
"""


def version_of(settings: NetworkSettings, features: Features = ALL_FEATURES) -> str:
    """The version of the ruleset for `settings`: a digest of its text without elements."""
    digest = hashlib.sha256(_render(settings, "", {}, features).encode()).hexdigest()
    return f"shoal {digest[:16]}{suffix_of(features)}"


def render(settings: NetworkSettings, elements: Elements, features: Features = ALL_FEATURES) -> str:
    """The ruleset as nft text, holding `elements` from the start."""
    return _render(settings, version_of(settings, features), elements, features)


def load(text: str) -> None:
    """Load nft text in the calling thread's namespace, replacing the table if it is there.

    Raises: Refused.
    """
    if shutil.which("nft") is None:
        raise Unimplemented("the program `nft` is missing: install the package nftables")
    # `table` first, so that `delete` finds one; all of it is one transaction.
    _, problem = _nft(f"table inet {TABLE}\ndelete table inet {TABLE}\n{text}")
    if problem:
        raise Refused(problem)


def load_best(settings: NetworkSettings, elements: Elements) -> Features:
    """Load the ruleset, whole if the machine can carry it, else as much of it as serves.

    Raises: Unimplemented, naming what is missing, if too little of it does.
    """
    try:
        load(render(settings, elements))
    except Refused as refused:
        features = reduced(refused.said, lambda text: _nft(text, "--check")[0] == 0)
    else:
        return ALL_FEATURES
    load(render(settings, elements, features))
    return features


class Refused(Internal):
    """What nft said against a text."""

    def __init__(self, said: str) -> None:
        """said: all of it; the first line is for people."""
        self.said = said.strip()
        super().__init__(f"nft refused the mesh's ruleset: {self.said.partition(chr(10))[0]}")


def _nft(text: str, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        ["nft", *options, "-f", "-"],
        input=text,
        capture_output=True,
        text=True,
        timeout=_NFT_DEADLINE_S,
        check=False,
    )
    return done.returncode, (done.stderr or f"exit code {done.returncode}") * bool(done.returncode)


def _render(settings: NetworkSettings, version: str, elements: Elements, features: Features) -> str:
    mask = 0xFFF << settings.mark_shift
    known = {name: _list(elements.get(name, {}), write) for name, write in _WRITERS.items()}
    known["nodes"] = known["nodes"] or f"elements = {{ {settings.underlay_address} }} "
    zones = _ZONE_MAP.format(elements=known.pop("node_zone"))
    slots = _whole(elements) if features.slot_keys else _split(elements)
    return _TEMPLATE.format(
        version=version if version else "unversioned",
        port=settings.data_path_port,
        gateway=gateway_of(settings.subnet),
        gateway6=twin(gateway_of(settings.subnet)),
        mask=f"0x{mask:08x}",
        rest=f"0x{0xFFFFFFFF ^ mask:08x}",
        port_sets="\n".join(
            f"  set {name} {{ type {key}; {_list(elements.get(name, {}), _port)}}}"
            for name, key in PORT_SETS.items()
        ),
        maps="\n".join(slots.maps),
        lb="\n".join(slots.rules),
        slot_chains="\n".join(slots.chains),
        zone_map=zones if features.zones else "",
        zone_chain=_ZONE_CHAIN if features.zones else "",
        no_zone_rules="" if features.zones else "\n".join(_by_this_node(settings)),
        by_node_rules="\n".join(_by_node_rules(gateway_of(settings.subnet))),
        **known,
    )


class _Slots(msgspec.Struct, frozen=True):
    """Maps, the rules that choose by them, and chains those need."""

    maps: list[str]
    rules: list[str]
    chains: list[str]


def _whole(elements: Elements) -> _Slots:
    """A map and a rule for each kind: the slot is part of the key."""
    maps: list[str] = []
    rules: list[str] = []
    for name, kind in SLOT_MAPS.items():
        family, size = _FAMILIES[kind.version], _size(name)
        held = _list(elements.get(name, {}), _slot)
        port = f"{_place(kind)}meta l4proto . th dport"
        maps.append(
            f"  map {name} {{ typeof {port} . numgen random mod {size} : "
            f"{family} daddr . th dport; {held}}}"
        )
        chooser = f"{_chooser(name, family)} mod {size}"
        rules.append(f"    {_translated(kind)} dnat {family} to {port} . {chooser} map @{name}")
    return _Slots(maps, rules, [])


def _split(elements: Elements) -> _Slots:
    """A map and a chain for each slot: which one, a verdict map says."""
    maps: list[str] = []
    rules: list[str] = []
    chains: list[str] = []
    for name, kind in SLOT_MAPS.items():
        if name not in SPLIT:
            continue
        family, size = _FAMILIES[kind.version], _size(name)
        address = f"ipv{kind.version}_addr"
        key = f"{address} . " * kind.placed + "inet_proto . inet_service"
        port = f"{_place(kind)}meta l4proto . th dport"
        jumps = ", ".join(f"{slot} : jump {split_name(name, slot)}" for slot in range(size))
        chooser = f"{_chooser(name, family)} mod {size}"
        rules.append(f"    {_translated(kind)} {chooser} vmap {{ {jumps} }}")
        by_slot = split(elements.get(name, {}))
        for slot in range(size):
            one, held = split_name(name, slot), _list(by_slot.get(slot, {}), _target)
            maps.append(f"  map {one} {{ type {key} : {address} . inet_service; {held}}}")
            rule = f"{_translated(kind)} dnat {family} to {port} map @{one}"
            chains.append(f"  chain {one} {{ {rule}; }}")
    return _Slots(maps, rules, chains)


def _translated(kind: SlotMap) -> str:
    """Which packets; without the protocols nft refuses `th dport` in a translation."""
    return f"meta nfproto ipv{kind.version} meta l4proto {{ {', '.join(PROTOCOLS)} }}"


def _chooser(name: str, family: str) -> str:
    return f"jhash {family} saddr" if name.startswith("sticky") else "numgen random"


def _by_this_node(settings: NetworkSettings) -> list[str]:
    """Without zones, a client that comes by two nodes must not look the same from both."""
    gateway = gateway_of(settings.subnet)
    return [
        f'    oifname "vxi" ct status dnat meta nfproto ipv{version} snat {family} to {address}'
        for version, family, address in ((4, "ip", gateway), (6, "ip6", twin(gateway)))
    ]


def _by_node_rules(gateway: str) -> list[str]:
    """Translate the client's address for ports that ask for it: the reply comes back by itself."""
    # Without one protocol to look at, nft does not know what kind of port `ct original` gives.
    return [
        f'    oifname {{ "gt*", "vxi" }} ct status dnat meta l4proto {protocol} {at}'
        f"meta l4proto . ct original proto-dst @by_node{kind} snat {family} to {address}"
        for protocol in PROTOCOLS
        for family, placed, address in (("ip", "_at", gateway), ("ip6", "_at6", twin(gateway)))
        for kind, at in (("", ""), (placed, f"ct original {family} daddr . "))
    ]


def _place(kind: SlotMap) -> str:
    return f"{_FAMILIES[kind.version]} daddr . " if kind.placed else ""


def _size(name: str) -> int:
    return WIDE_SLOTS if "_wide" in name else NARROW_SLOTS


def _list(elements: Mapping[bytes, bytes], write: Callable[[bytes, bytes], str]) -> str:
    if not elements:
        return ""
    return f"elements = {{ {', '.join(write(k, v) for k, v in elements.items())} }} "


def _slot(key: bytes, value: bytes) -> str:
    address, plain = parse_placed_key(key, len(slot_key(0, 0, 0)))
    protocol, port, slot = parse_slot_key(plain)
    endpoint = parse_endpoint(value)
    at = f"{address} . " if address else ""
    return f"{at}{protocol} . {port} . {slot} : {endpoint.address} . {endpoint.port}"


def _target(key: bytes, value: bytes) -> str:
    endpoint = parse_endpoint(value)
    return f"{_port(key, b'')} : {endpoint.address} . {endpoint.port}"


def _pair(family: int) -> Callable[[bytes, bytes], str]:
    def write(key: bytes, _value: bytes) -> str:
        half = len(key) // 2
        return " . ".join(socket.inet_ntop(family, part) for part in (key[:half], key[half:]))

    return write


def _port(key: bytes, _value: bytes) -> str:
    address, plain = parse_placed_key(key, len(port_key(0, 0)))
    protocol, port = parse_port_key(plain)
    at = f"{address} . " if address else ""
    return f"{at}{protocol} . {port}"


def _number(value: bytes, form: str) -> int:
    number: int = struct.unpack_from(form, value)[0]
    return number


_WRITERS: Final[dict[str, Callable[[bytes, bytes], str]]] = {
    "nodes": lambda key, _: socket.inet_ntoa(key),
    "nodes6": lambda key, _: socket.inet_ntop(socket.AF_INET6, key),
    "self4": _pair(socket.AF_INET),
    "self6": _pair(socket.AF_INET6),
    "reserved": _port,
    "node_mac": lambda key, value: f"{key.hex(':')} : {_number(value, '=I')}",
    "node_zone": lambda key, value: f"{key.hex(':')} : {_number(value, '=H')}",
}
