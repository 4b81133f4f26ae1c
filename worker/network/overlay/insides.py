"""The namespaces of tasks that are on overlay networks: addresses, virtual addresses, connections.

`worker.network.tasks` makes and drops these namespaces; here only the interfaces and tables of
overlay networks are touched. Sockets stay open from one change to the next, for so many tasks at
once; they must be closed before the namespace can end. Every method blocks and belongs to one
thread.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from worker.network import netns, route, sysctl
from worker.network.conntrack import ConntrackSocket, Match
from worker.network.core import Table
from worker.network.local.links import put_address
from worker.network.local.nftables import Nft, NftError
from worker.network.local.ruleset import NAMES_ADDRESS, NAMES_TABLE, names_table
from worker.network.netlink import NETLINK_ROUTE, NetlinkSocket
from worker.network.nft import NFPROTO_IPV4, NFPROTO_IPV6, NftSocket
from worker.network.overlay import links, plan, ruleset
from worker.network.overlay.api import OverlayLink, TaskPlace

SOCKETS_MAX: Final = 256
_FAMILIES: Final = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}


class TaskSpaces:
    """This node's tasks, seen from inside."""

    def __init__(self) -> None:
        self._sockets: OrderedDict[tuple[str, int], NftSocket] = OrderedDict()

    def close(self) -> None:
        """Close all sockets; the kernel keeps everything."""
        while self._sockets:
            self._sockets.popitem()[1].close()

    def configure(self, link: OverlayLink) -> None:
        """Addresses of an interface, which then is up; the thread is inside. Raises: OSError."""
        index = socket.if_nametoindex(link.interface)
        found = [ipaddress.ip_interface(address) for address in link.addresses]
        if any(one.version == 6 for one in found):
            sysctl.write(f"ipv6/conf/{link.interface}/disable_ipv6", "0")
        with NetlinkSocket(NETLINK_ROUTE) as inside:
            inside.transact(
                [
                    route.set_up(index),
                    *(put_address(index, one.ip, one.network.prefixlen) for one in found),
                ]
            )

    def shut_in(self, place: TaskPlace) -> None:
        """Take the way out away; the thread is inside. Raises: OSError."""
        with NetlinkSocket(NETLINK_ROUTE) as inside:
            inside.transact([links.set_down(socket.if_nametoindex(place.uplink))])

    def load(self, versions: Iterable[int]) -> None:
        """The tables of these address families, without elements; the thread is inside."""
        with Nft() as nft:
            for version in versions:
                nft.run(ruleset.table(version))

    def redirect_names(self, place: TaskPlace, ports: tuple[int, int]) -> None:
        """Let the task's queries reach the resolver, unless they do already. Raises: NftError."""
        with netns.entered(Path(place.netns_path)), Nft() as nft:
            if not _leads_to(nft, ports):
                nft.run(names_table(*ports))

    def tables(self, place: TaskPlace) -> dict[str, Table]:
        """The virtual addresses that are in force; tables of another version are made anew."""
        found: dict[str, Table] = {}
        for version in versions_of(place):
            nft = self._socket(place, version)
            if nft.version() != ruleset.VERSION:
                with netns.entered(Path(place.netns_path)):
                    self.load([version])
                continue
            slots = {name: nft.elements(name) for name in plan.SLOTS.values()}
            found.update(plan.parse(nft.elements(plan.VIPS), slots))
        return found

    def change(self, place: TaskPlace, version: int, change: plan.Change) -> None:
        """One transaction. Raises: NetlinkError."""
        if change != plan.Change():
            self._socket(place, version).apply(change.deletes, change.adds)

    def forget(self, place: TaskPlace, matches: Sequence[Match]) -> None:
        """Forget tracked connections of the task. Raises: NetlinkError."""
        with netns.entered(Path(place.netns_path)):
            conntrack = ConntrackSocket()
        with contextlib.closing(conntrack):
            conntrack.forget(matches)

    def release(self, task_id: str) -> None:
        """Close what would keep the task's namespace alive. Idempotent."""
        for version in _FAMILIES:
            found = self._sockets.pop((task_id, version), None)
            if found is not None:
                found.close()

    def _socket(self, place: TaskPlace, version: int) -> NftSocket:
        key = (place.task_id, version)
        found = self._sockets.get(key)
        if found is None:
            while len(self._sockets) >= SOCKETS_MAX:
                self._sockets.popitem(last=False)[1].close()
            with netns.entered(Path(place.netns_path)):
                found = self._sockets[key] = NftSocket(_FAMILIES[version])
        self._sockets.move_to_end(key)
        return found


def versions_of(place: TaskPlace) -> tuple[int, ...]:
    """The address families that a task has on overlay networks."""
    found = {plan.version_of(address) for link in place.links for address in link.addresses}
    return tuple(sorted(found))


def _leads_to(nft: Nft, ports: tuple[int, int]) -> bool:
    try:
        found = nft.run(f"list table ip {NAMES_TABLE}")
    except NftError:  # there is none yet
        return False
    return all(f"{NAMES_ADDRESS}:{port}\n" in found for port in ports)
