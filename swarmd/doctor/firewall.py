"""What other software's packet filters do with a packet. Pure.

A model of what nftables and iptables have in common, and a walk through it with one packet. Of a
packet only some properties are known; a condition on any other one is taken for the exception that
it mostly is: `saddr 192.0.2.7 drop` does not match, `saddr != 192.0.2.0/24 drop` does. So the
answer is that for a packet no rule singles out. Invariant: the walk ends, whatever the rules say:
chains are entered at most as deeply as the kernel enters them.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

DEPTH_MAX: Final = 16
"""NFT_JUMP_STACK_SIZE; deeper rulesets are refused by the kernel."""

Packet = Mapping[str, str]
"""What is known of it: iifname, oifname, l4proto, dport, saddr, `ct state`, `ct status`."""


class Condition(msgspec.Struct, frozen=True):
    """One property against values: interfaces with `*` at the end, `7-9`, networks, or words."""

    key: str
    values: tuple[str, ...]
    negated: bool = False


class Rule(msgspec.Struct, frozen=True):
    """All conditions, then the verdict: accept, drop, return, or "" to go on; or another chain.

    target: a chain; comes_back: it is jumped to, what it leaves open comes back here.
    """

    conditions: tuple[Condition, ...] = ()
    verdict: str = ""
    target: str = ""
    comes_back: bool = True


class Chain(msgspec.Struct, frozen=True):
    """hook: where the kernel calls it; "": only other chains do."""

    name: str
    hook: str = ""
    policy: str = "accept"
    rules: tuple[Rule, ...] = ()


class Table(msgspec.Struct, frozen=True):
    """tool: the program that changes it: `nft`, `iptables`, `ip6tables`, a legacy one."""

    family: str
    name: str
    tool: str
    chains: Mapping[str, Chain]


class Blocked(msgspec.Struct, frozen=True, order=True):
    """The table and the base chain that drop a packet."""

    tool: str
    family: str
    table: str
    chain: str
    hook: str


def blocks(tables: Sequence[Table], packet: Packet, hooks: Sequence[str]) -> list[Blocked]:
    """Whoever drops `packet` on its way through `hooks`: every base chain may."""
    return [
        Blocked(table.tool, table.family, table.name, chain.name, chain.hook)
        for table in tables
        for chain in table.chains.values()
        if chain.hook in hooks and _verdict(table, chain, packet) == "drop"
    ]


def matches(condition: Condition, packet: Packet) -> bool:
    """Whether it holds for a packet; see the module for properties that are not known."""
    found = packet.get(condition.key)
    if found is None:
        return condition.negated
    return any(_is(found, value) for value in condition.values) is not condition.negated


def _verdict(table: Table, chain: Chain, packet: Packet) -> str:
    return _walk(table, chain, packet, 0) or chain.policy


def _walk(table: Table, chain: Chain, packet: Packet, depth: int) -> str:
    """Accept or drop; "" when the chain comes to its end without either."""
    for rule in chain.rules:
        if not all(matches(condition, packet) for condition in rule.conditions):
            continue
        if rule.verdict == "return":
            return ""
        if rule.verdict:
            return rule.verdict
        target = table.chains.get(rule.target)
        if target is None or depth >= DEPTH_MAX:
            continue
        found = _walk(table, target, packet, depth + 1)
        if found or not rule.comes_back:
            return found
    return ""


def _is(found: str, value: str) -> bool:
    if value.endswith("*"):
        return found.startswith(value[:-1])
    first, dash, last = value.partition("-")
    if dash and first.isdigit() and last.isdigit():
        return found.isdigit() and int(first) <= int(found) <= int(last)
    if "/" in value:
        try:
            return ipaddress.ip_address(found) in ipaddress.ip_network(value, strict=False)
        except ValueError:
            return False
    return found == value
