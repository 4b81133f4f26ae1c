"""Reads what `nft --json list ruleset` and `iptables-save` print into the firewall model. Pure.

What is not understood becomes a condition on something that no packet is known to have, so it
counts as an exception (see `firewall`). iptables' own tables are read from iptables-save where it
can print them, because nft shows their matches by name only. Our own tables are left out.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from swarmd.doctor.firewall import Chain, Condition, Rule, Table

OURS: Final = "shoal"
_IPTABLES: Final = frozenset({"filter", "nat", "mangle", "raw", "security"})
_UPPER_HOOKS: Final = frozenset({"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"})
_FAMILIES: Final = frozenset({"ip", "ip6", "inet"})
_VERDICTS: Final = {"accept": "accept", "drop": "drop", "reject": "drop", "return": "return"}
_UNKNOWN: Final = Condition("unknown", ("",))
_HARMLESS: Final = frozenset({"counter", "log", "limit", "quota", "mangle", "ct helper"})
"""Statements after which the rule goes on. A limit is taken for one that is not exceeded."""

Object = Mapping[str, Any]


def from_nft(objects: Iterable[Object], without: frozenset[str] = frozenset()) -> list[Table]:
    """Tables of others. without: families whose iptables tables are read from iptables-save."""
    chains: dict[tuple[str, str], dict[str, Object]] = {}
    rules: dict[tuple[str, str, str], list[Object]] = {}
    sets: dict[tuple[str, str, str], tuple[str, ...]] = {}
    for entry in objects:
        for kind, item in entry.items():
            at = (item.get("family", ""), item.get("table", ""))
            if kind == "chain":
                chains.setdefault(at, {})[item["name"]] = item
            elif kind == "rule":
                rules.setdefault((*at, item["chain"]), []).append(item)
            elif kind in ("set", "map"):
                sets[(*at, item["name"])] = tuple(_values(item.get("elem", ())))
    found = []
    for (family, name), members in chains.items():
        if family not in _FAMILIES or name.startswith(OURS):
            continue
        if family in without and name in _IPTABLES and not _UPPER_HOOKS.isdisjoint(members):
            continue
        known = {key[2]: values for key, values in sets.items() if key[:2] == (family, name)}
        found.append(Table(family, name, "nft", {
            chain: Chain(
                chain,
                item.get("hook", "") if item.get("type") == "filter" else "",
                item.get("policy", "accept"),
                tuple(
                    one
                    for rule in rules.get((family, name, chain), ())
                    for one in _nft_rules(rule.get("expr", ()), known)
                ),
            )
            for chain, item in members.items()
        }))  # fmt: skip
    return found


def from_iptables(text: str, tool: str) -> list[Table]:
    """What `TOOL-save` printed; tables that only translate addresses are left out."""
    found: list[Table] = []
    chains: dict[str, str] = {}
    rules: dict[str, list[Rule]] = {}
    name = ""
    for line in text.splitlines():
        if line.startswith("*"):
            name, chains, rules = line[1:].strip(), {}, {}
        elif line.startswith(":"):
            chain, policy = line[1:].split()[:2]
            chains[chain] = policy
        elif line.startswith("-A "):
            chain, *words = shlex.split(line)[1:]
            rules.setdefault(chain, []).append(_iptables_rule(words))
        elif line == "COMMIT" and name != "nat":
            family = "ip6" if tool.startswith("ip6") else "ip"
            found.append(Table(family, name, tool, {
                chain: Chain(
                    chain,
                    chain.lower() if chain in _UPPER_HOOKS else "",
                    "drop" if policy == "DROP" else "accept",
                    tuple(rules.get(chain, ())),
                )
                for chain, policy in chains.items()
            }))  # fmt: skip
    return found


def is_over_nft(text: str) -> bool:
    """Whether the iptables-save that printed this keeps its tables in nftables."""
    return "(nf_tables)" in text.partition("\n")[0]


def members_of(objects: Iterable[Object], table: str, name: str) -> tuple[str, ...]:
    """The elements of a set of table `inet TABLE`; none without it."""
    for entry in objects:
        item = entry.get("set", {})
        if (item.get("family"), item.get("table"), item.get("name")) == ("inet", table, name):
            return tuple(_values(item.get("elem", ())))
    return ()


def _nft_rules(expressions: Iterable[Object], sets: Mapping[str, tuple[str, ...]]) -> list[Rule]:
    """One rule; of a verdict map, one for each element."""
    conditions: list[Condition] = []
    for expression in expressions:
        for kind, item in expression.items():
            if kind == "match":
                conditions.append(_match(item, sets))
            elif kind in _VERDICTS:
                return [Rule(tuple(conditions), _VERDICTS[kind])]
            elif kind in ("jump", "goto"):
                target = item["target"]
                return [Rule(tuple(conditions), target=target, comes_back=kind == "jump")]
            elif kind == "vmap":
                return list(_by_map(item, conditions))
            elif kind not in _HARMLESS or (kind == "limit" and item.get("inv")):
                conditions.append(_UNKNOWN)
    return []


def _by_map(item: Object, conditions: list[Condition]) -> Iterator[Rule]:
    key, data = _key(item["key"]), item["data"]
    for value, verdict in data.get("set", ()) if isinstance(data, dict) else ():
        which = Condition(key, tuple(_values([value])))
        for rule in _nft_rules([verdict], {}):
            yield Rule((*conditions, which), rule.verdict, rule.target, rule.comes_back)


def _match(item: Object, sets: Mapping[str, tuple[str, ...]]) -> Condition:
    right = item["right"]
    if isinstance(right, str) and right.startswith("@"):
        values = sets.get(right[1:], ())
    else:
        values = tuple(_values(right))
    negated = item["op"] == "!="
    # Of `<` and the like nothing is made, nor of a match of bits (`ct status & dnat`).
    known = item["op"] in ("==", "!=", "in")
    return Condition(_key(item["left"]) if known else "unknown", values, negated)


def _key(left: object) -> str:
    if not isinstance(left, dict):
        return "unknown"
    if "meta" in left:
        return str(left["meta"]["key"])
    if "ct" in left and "dir" not in left["ct"]:
        return f"ct {left['ct']['key']}"
    payload = left.get("payload", {})
    return str(payload.get("field", "unknown")) if isinstance(payload, dict) else "unknown"


def _values(items: Any) -> Iterator[str]:
    """The plain values of a set: words, numbers, ranges and networks."""
    for item in items if isinstance(items, list | tuple) else (items,):
        match item:
            case str() | int():
                yield str(item)
            case {"range": [first, last]}:
                yield f"{first}-{last}"
            case {"prefix": {"addr": address, "len": length}}:
                yield f"{address}/{length}"
            case {"set": inner} | {"elem": {"val": inner}}:
                yield from _values(inner)
            case _:
                pass


_OPTIONS: Final = {
    "-i": "iifname", "-o": "oifname", "-p": "l4proto", "-s": "saddr",
    "--dport": "dport", "--dports": "dport", "--ctstate": "ct state", "--state": "ct state",
}  # fmt: skip
_NO_MEANING: Final = frozenset({"--comment", "--reject-with", "--log-prefix", "--log-level"})


def _iptables_rule(words: list[str]) -> Rule:
    conditions: list[Condition] = []
    negated = False
    rest = iter(words)
    for word in rest:
        if word == "!":
            negated = True
            continue
        if word in ("-j", "-g"):
            return _iptables_verdict(tuple(conditions), next(rest, ""), comes_back=word == "-j")
        if word in _OPTIONS:
            values = next(rest, "").lower() if word == "--ctstate" else next(rest, "")
            conditions.append(Condition(_OPTIONS[word], _words(values), negated))
        elif word in _NO_MEANING or word == "-m":
            next(rest, "")
        else:
            conditions.append(_UNKNOWN)
        negated = False
    return Rule()


def _iptables_verdict(conditions: tuple[Condition, ...], target: str, *, comes_back: bool) -> Rule:
    verdict = _VERDICTS.get(target.lower(), "")
    return Rule(conditions, verdict, "" if verdict else target, comes_back)


def _words(values: str) -> tuple[str, ...]:
    return tuple(
        f"{one[:-1]}*" if one.endswith("+") else one.replace(":", "-") if one[0].isdigit() else one
        for one in values.split(",")
        if one
    )
