"""Whether this machine has IPv6, with which addresses, and having it forward.

Everything is that of the calling thread's network namespace. Refuses nothing: who asks for what the
kernel lacks gets an OSError.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Final

from worker.network import sysctl
from worker.network.twins import PREFIX

ADDRESSES_MAX: Final = 16
_CONF: Final = Path("/proc/sys/net/ipv6/conf")
_ADDRESSES: Final = Path("/proc/thread-self/net/if_inet6")
_SCOPE_GLOBAL: Final = 0


def is_in_kernel() -> bool:
    """Whether there is IPv6 at all, switched off or not."""
    return _CONF.is_dir()


def why_missing() -> str:
    """Why there is no IPv6 here; empty where there is."""
    if not is_in_kernel():
        return "the kernel has no IPv6"
    if sysctl.read("ipv6/conf/all/disable_ipv6") != "0":
        return "net.ipv6.conf.all.disable_ipv6 is set"
    return ""


def own_addresses() -> tuple[str, ...]:
    """Addresses by which this machine may be known elsewhere: not the mesh's, at most 16."""
    try:
        lines = _ADDRESSES.read_text().splitlines()
    except FileNotFoundError:
        return ()
    rows = [line.split() for line in lines]
    found = {
        ipaddress.IPv6Address(bytes.fromhex(address))
        for address, _device, _length, scope, _flags, _name in rows
        if int(scope, 16) == _SCOPE_GLOBAL
    }
    return tuple(str(one) for one in sorted(found) if one not in PREFIX)[:ADDRESSES_MAX]


def forward() -> None:
    """Forward packets, and go on taking the routes that routers advertise to this machine.

    The kernel stops listening to them once it forwards, unless accept_ra is 2. Raises: OSError.
    """
    if sysctl.read("ipv6/conf/all/forwarding") == "1":
        return
    for conf in _CONF.iterdir():
        name = f"ipv6/conf/{conf.name}/accept_ra"
        if conf.name not in ("all", "default") and _reads(name, "1"):
            sysctl.try_write(name, "2")
    sysctl.write("ipv6/conf/all/forwarding", "1")


def _reads(name: str, value: str) -> bool:
    try:
        return sysctl.read(name) == value
    except OSError:  # the device is gone
        return False
