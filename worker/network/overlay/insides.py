"""The namespaces of tasks that are on overlay networks: addresses, virtual addresses, connections.

`worker.network.tasks` makes and drops these namespaces; here only the interfaces and tables of
overlay networks are touched. Sockets stay open from one change to the next, for so many tasks at
once; they must be closed before the namespace can end. Every method blocks and belongs to one
thread.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

from worker.network import netns, route, sysctl
from worker.network.conntrack import ConntrackSocket, Match
from worker.network.core import Table
from worker.network.local.links import put_address
from worker.network.local.nftables import Nft, NftError
from worker.network.local.ruleset import NAMES_ADDRESS, NAMES_TABLE, names_table
from worker.network.netlink import NETLINK_ROUTE, Message, NetlinkSocket
from worker.network.nft import NFPROTO_IPV4, NFPROTO_IPV6, NftSocket, transaction
from worker.network.overlay import links, plan, ruleset
from worker.network.overlay.api import OverlayLink, TaskPlace

SOCKETS_MAX: Final = 256
_FAMILIES: Final = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}


Kind = TypeVar("Kind", NftSocket, ConntrackSocket)


class _Kept(Generic[Kind]):
    """Sockets in tasks' namespaces, those used last."""

    def __init__(self, make: Callable[[], Kind]) -> None:
        self._make: Callable[[], Kind] = make
        self._sockets: OrderedDict[str, Kind] = OrderedDict()

    def of(self, place: TaskPlace) -> Kind:
        found = self._sockets.get(place.task_id)
        if found is None:
            while len(self._sockets) >= SOCKETS_MAX:
                self._sockets.popitem(last=False)[1].close()
            with netns.entered(Path(place.netns_path)):
                found = self._sockets[place.task_id] = self._make()
        self._sockets.move_to_end(place.task_id)
        return found

    def release(self, task_id: str) -> None:
        found = self._sockets.pop(task_id, None)
        if found is not None:
            found.close()

    def close(self) -> None:
        while self._sockets:
            self._sockets.popitem()[1].close()


class TaskSpaces:
    """This node's tasks, seen from inside."""

    def __init__(self) -> None:
        self._nft = {
            version: _Kept[NftSocket](partial(NftSocket, family))
            for version, family in _FAMILIES.items()
        }
        self._conntrack = _Kept[ConntrackSocket](ConntrackSocket)

    def close(self) -> None:
        """Close all sockets; the kernel keeps everything."""
        for kept in self._nft.values():
            kept.close()
        self._conntrack.close()

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

    def find_out_sizes(self) -> None:
        """Let TCP find out what the path lets pass, where nobody says so; the thread is inside.

        Between nodes a path that loses large packets loses them silently: what would tell of it is
        sent to the node, and knows nothing of the task's packet inside.
        """
        sysctl.try_write("ipv4/tcp_mtu_probing", "1")

    def shut_in(self, place: TaskPlace) -> None:
        """Take the way out away; the thread is inside. Raises: OSError."""
        with NetlinkSocket(NETLINK_ROUTE) as inside:
            inside.transact([links.set_down(socket.if_nametoindex(place.uplink))])

    def load(self, place: TaskPlace, version: int) -> None:
        """The table of an address family, without elements. Raises: NftError."""
        there = self._nft[version].of(place).version() is not None
        with netns.entered(Path(place.netns_path)), Nft() as nft:
            nft.run(ruleset.table(version, replaces=there))

    def redirect_names(self, place: TaskPlace, ports: tuple[int, int]) -> None:
        """Let the task's queries reach the resolver, unless they do already. Raises: NftError."""
        with netns.entered(Path(place.netns_path)), Nft() as nft:
            found = _names_table(nft)
            if not all(f"{NAMES_ADDRESS}:{port}\n" in found for port in ports):
                nft.run(names_table(*ports, replaces=bool(found)))

    def tables(self, place: TaskPlace) -> dict[str, Table]:
        """The virtual addresses that are in force; tables of another version are made anew."""
        found: dict[str, Table] = {}
        for version in versions_of(place):
            nft = self._nft[version].of(place)
            if nft.version() != ruleset.VERSION:
                self.load(place, version)
                continue
            slots = {name: nft.elements(name) for name in plan.SLOTS.values()}
            found.update(plan.parse(nft.elements(plan.VIPS), slots))
        return found

    def change(self, place: TaskPlace, version: int, messages: Sequence[Message]) -> None:
        """One transaction, made by `elements`. Raises: NetlinkError."""
        if messages:
            self._nft[version].of(place).send(messages)

    def forget(self, place: TaskPlace, matches: Sequence[Match]) -> None:
        """Forget tracked connections of the task. Raises: NetlinkError."""
        self._conntrack.of(place).forget(matches)

    def release(self, task_id: str) -> None:
        """Close what would keep the task's namespace alive. Idempotent."""
        for kept in self._nft.values():
            kept.release(task_id)
        self._conntrack.release(task_id)


def elements(change: plan.Change, version: int) -> tuple[Message, ...]:
    """A change as messages, which are the same for every task."""
    return transaction(_FAMILIES[version], change.deletes, change.adds)


def versions_of(place: TaskPlace) -> tuple[int, ...]:
    """The address families that a task has on overlay networks."""
    found = {plan.version_of(address) for link in place.links for address in link.addresses}
    return tuple(sorted(found))


def _names_table(nft: Nft) -> str:
    """The table that leads to the resolver; empty: there is none."""
    try:
        return nft.run(f"list table ip {NAMES_TABLE}")
    except NftError:
        return ""
