"""What the kernel of a lab's node holds of overlay networks, asked with iproute2."""

from __future__ import annotations

import ipaddress
from typing import Any

import msgspec

from tests.integration.cluster.lab import Lab

_LOOK = """
for space in "$1"/netns/*; do
  [ -e "$space" ] && nsenter --net="$space" ip -j -4 address show scope global
done
echo
for space in "$1"/overlay/netns/*; do
  [ -e "$space" ] && echo "${space##*/} $(nsenter --net="$space" ip -j -4 neighbour show dev vx0)"
done
exit 0
"""


class Held(msgspec.Struct, frozen=True):
    """own: addresses of the node's tasks on networks. elsewhere: by network id, of other nodes."""

    own: tuple[str, ...]
    elsewhere: dict[str, frozenset[str]]


def look(lab: Lab, node: str) -> Held:
    """What a node's kernel holds now, also while the node is cut off."""
    run_dir = f"{lab.base}/lab/{lab.name}/{node}/run"
    words = ("lab", "exec", "--name", lab.name, node, "--", "sh", "-c", _LOOK, "sh", run_dir)
    tasks, _, networks = lab.swarmctl(*words).partition("\n\n")
    elsewhere = {}
    for line in networks.splitlines():
        network, _, said = line.partition(" ")
        found: list[dict[str, Any]] = msgspec.json.decode(said)
        elsewhere[network] = frozenset(one["dst"] for one in found if "lladdr" in one)
    return Held(tuple(_own(tasks.splitlines())), elsewhere)


def _own(lines: list[str]) -> list[str]:
    links: list[dict[str, Any]] = [link for line in lines for link in msgspec.json.decode(line)]
    return [
        str(ipaddress.ip_address(address["local"]))
        for link in links
        if link["ifname"] not in ("lo", "eth0")  # eth0 leads to the node
        for address in link["addr_info"]
    ]
