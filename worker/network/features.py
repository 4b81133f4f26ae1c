"""What the mesh's ruleset needs of kernel and nft, which of it can be done without, and probing.

Two things have another way that serves as well, or nearly: a slot number inside a map's key (a map
per slot instead; up to 64 endpoints a port), and zones of connection tracking by direction (what
goes on to another node carries this node's address, so that two connections of one client by two
nodes cannot be mistaken for each other; the client's address is lost there). Everything else is
refused by name. Invariant: nothing is probed while the whole ruleset is accepted. Pure, but for
`missing`, which asks what it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from shoal.errors import Internal, Unimplemented

_MARK: Final = " without "


class Features(msgspec.Struct, frozen=True):
    """What the ruleset may use. slot_keys: slot numbers in keys of maps; zones: by direction."""

    slot_keys: bool = True
    zones: bool = True

    @property
    def lost(self) -> tuple[str, ...]:
        """What does not work as it should, for people."""
        found = []
        if not self.slot_keys:
            found.append("at most 64 tasks of a service get connections by a published port")
        if not self.zones:
            found.append("tasks of other nodes see this node's address instead of the client's")
        return tuple(found)


def suffix_of(features: Features) -> str:
    """What the version of a reduced ruleset ends with; empty for the whole one."""
    lacks = [name for name in Features.__struct_fields__ if not getattr(features, name)]
    return f"{_MARK}{','.join(lacks)}" if lacks else ""


def features_of(version: str) -> Features:
    """The features of the ruleset with that version."""
    lacks = version.partition(_MARK)[2].split(",")
    return Features(**{name: name not in lacks for name in Features.__struct_fields__})


# Each with the smallest text that uses it.
_SLOT_RULE: Final = (
    "meta nfproto ipv4 meta l4proto tcp dnat ip to "
    "meta l4proto . th dport . numgen random mod 64 map @m"
)
_SLOT_MAP: Final = (
    "map m { typeof meta l4proto . th dport . numgen random mod 64 : ip daddr . th dport; }"
)


def _probe(hook: str, rule: str, *, kind: str = "filter", priority: int = 0, sets: str = "") -> str:
    chain = f"type {kind} hook {hook} priority {priority};\n{rule}"
    return f"table inet shoalprobe {{\n{sets}\nchain c {{\n{chain}\n}}\n}}"


_CHOICES: Final[dict[str, str]] = {
    "slot_keys": _probe("prerouting", _SLOT_RULE, kind="nat", sets=_SLOT_MAP),
    "zones": _probe("prerouting", "ct original zone set 1", priority=-290),
}
_NEEDED: Final[dict[str, str]] = {
    "nf_tables with the inet family": "table inet shoalprobe { }",
    "nat chains in nft": _probe("prerouting", "", kind="nat"),
    "fib lookups in nft": _probe("prerouting", "fib daddr type local accept"),
    "random numbers in nft": _probe("prerouting", "meta mark set numgen random mod 64"),
    "jhash in nft": _probe("prerouting", "meta nfproto ipv4 meta mark set jhash ip saddr mod 64"),
    "masquerade in nft": _probe("postrouting", "masquerade", kind="nat"),
    "reject in nft": _probe("input", "reject"),
}


def reduced(refused: str, is_accepted: Callable[[str], bool]) -> Features:
    """What to do without, after nft refused the whole ruleset with those words.

    Raises: Unimplemented naming what is missing; Internal when nothing is.
    """
    first_line = refused.strip().partition("\n")[0] or "no message"
    missing = [name for name, text in _NEEDED.items() if not is_accepted(text)]
    if missing:
        raise Unimplemented(
            f"this kernel cannot carry the mesh; missing: {', '.join(missing)} (nft: {first_line})"
        )
    found = Features(**{name: is_accepted(text) for name, text in _CHOICES.items()})
    if found == Features():
        raise Internal(f"nft refused the mesh's ruleset: {first_line}")
    return found
