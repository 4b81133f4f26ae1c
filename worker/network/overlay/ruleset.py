"""The nft tables in the namespace of a task that is on overlay networks, as text: pure.

Written once for each task; virtual addresses are elements. A virtual address that nobody is ready
behind is refused at once. Only `table ip shoal` and `table ip6 shoal` of the namespace are named.
"""

from __future__ import annotations

from typing import Final

VERSION: Final = "shoal overlay 1"

_TABLE = """
{before}
table {family} shoal {{
  comment "{version}"
  set vips {{ type {kind}; }}
  map slots {{ typeof {family} daddr . numgen random mod 64 : {family} daddr; }}
  map slots_wide {{ typeof {family} daddr . numgen random mod 1024 : {family} daddr; }}
  chain balance {{ type nat hook output priority -100;
    dnat to {family} daddr . numgen random mod 64 map @slots
    dnat to {family} daddr . numgen random mod 1024 map @slots_wide
  }}
  # What is still addressed to a service here has found nobody who is ready.
  chain refuse {{ type filter hook output priority 0;
    {family} daddr @vips meta l4proto tcp reject with tcp reset
    {family} daddr @vips reject
  }}
}}
"""


def table(version: int, *, replaces: bool) -> str:
    """The table of an address family, 4 or 6. replaces: there is one.

    Only then is one deleted: after a deletion the next change waits for the kernel, 10 ms.
    """
    family, kind = ("ip", "ipv4_addr") if version == 4 else ("ip6", "ipv6_addr")
    before = f"delete table {family} shoal" if replaces else ""
    return _TABLE.format(family=family, kind=kind, version=VERSION, before=before)
