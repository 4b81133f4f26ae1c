"""A task's link: its network namespace, a routed veth without a bridge, its address and routes.

Inside: `address`/32 on one interface, the gateway as a permanent neighbour, a default route.
Outside: a /32 route and a permanent neighbour. All of it once more for the IPv6 twin of the
address, where the node has IPv6. Invariant: a task has an address exactly while it is
known here. Links are never deleted (24-32 ms each under the kernel's global lock): the namespace is
dropped and the kernel takes the link along, so names are unique and host routes are replaced.
"""

from __future__ import annotations

import errno
import re
import socket
from pathlib import Path
from typing import Final

from shoal.clock import Clock
from shoal.errors import InvalidArgument, NotFound
from worker.network import ipv6, netns, route, sysctl
from worker.network.api import Attachment, LinkStats, NetworkSettings
from worker.network.conntrack import Match
from worker.network.core import gateway_of, task_mac
from worker.network.fabric import loopback6_route
from worker.network.ipam import QUARANTINE_S, AddressPool, Grant
from worker.network.listeners import NamespaceSockets
from worker.network.netlink import NETLINK_ROUTE, Message, NetlinkError, NetlinkSocket
from worker.network.nft import Element, NftSocket
from worker.network.twins import twin

TASK_INTERFACE: Final = "eth0"
HOST_MAC: Final = bytes.fromhex("02fd00000001")
_HAIRPIN_SETS: Final = ("self4", "self6")
_NEW_WITHOUT_IPV6: Final = "ipv6/conf/default/disable_ipv6"
_TASK_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")
_INTERFACE = re.compile(r"[a-z][a-z0-9]{0,14}")


class TaskLinks:
    """The links of this node's tasks; every method blocks and belongs to one thread."""

    def __init__(self, settings: NetworkSettings, nft: NftSocket, clock: Clock) -> None:
        self._settings = settings
        self._nft = nft
        self._clock = clock
        self._route = NetlinkSocket(NETLINK_ROUTE)
        self._directory = Path(settings.run_dir) / "netns"
        self._gateway = gateway_of(settings.subnet)
        self._pool = AddressPool(settings.subnet)
        self._hairpins: set[Element] = set()

    def open(self) -> None:
        """Prepare the directory of namespaces; learn which addresses still rest."""
        netns.share_directory(self._directory)
        now_s = self._clock.monotonic_s()
        for key, rest_ms in self._nft.expirations_ms("resting").items():
            self._pool.rest(socket.inet_ntoa(key), until_s=now_s + rest_ms / 1000)
        self._hairpins = {
            Element(name, key) for name in _HAIRPIN_SETS for key in self._nft.elements(name)
        }

    def close(self) -> None:
        """Close the socket; tasks keep their links."""
        self._route.close()

    def remove(self) -> None:
        """Drop every namespace."""
        netns.unshare_directory(self._directory)

    def lingers(self, task_id: str) -> bool:
        """Whether the link of an earlier run is in the way; its namespace is dropped."""
        _check_task(task_id, TASK_INTERFACE)
        if self._pool.address_of(task_id) is not None:
            return False
        netns.drop(self._path(task_id))  # left by a crash before anyone adopted it
        return _index_of(_host_name(task_id)) is not None

    def attach(self, task_id: str, address: str | None, interface: str) -> tuple[Attachment, bool]:
        """Make the task's namespace and link; also whether its address comes from quarantine.

        Idempotent for a task that has its link. Raises: InvalidArgument, AlreadyExists,
        ResourceExhausted, NetlinkError, OSError.
        """
        _check_task(task_id, interface)
        held = self._pool.address_of(task_id)
        grant = self._grant(task_id, address)
        path = self._path(task_id)
        attachment = self._attachment(task_id, grant.address, interface)
        if held is not None and netns.is_mounted(path):
            return attachment, False
        try:
            self._plumb_inside(path, attachment)
            self._plumb_outside(attachment)
            self._set_hairpin(grant.address)
        except BaseException:
            netns.drop(path)
            self._pool.release(task_id, now_s=self._clock.monotonic_s())
            raise
        return attachment, grant.early

    def adopt(self, task_id: str, address: str, interface: str) -> Attachment:
        """Take over a task's link after a restart, and repair the host's side of it.

        Raises: NotFound if its namespace or link is gone; AlreadyExists; InvalidArgument.
        """
        _check_task(task_id, interface)
        self._pool.adopt(task_id, address)
        name = _host_name(task_id)
        for what, there in (
            ("network namespace", netns.is_mounted(self._path(task_id))),
            (f"interface {name}", route.link_of(self._route, name) is not None),
        ):
            if not there:
                self._pool.release(task_id, now_s=self._clock.monotonic_s())
                raise NotFound(f"task {task_id}: its {what} is gone; the task must be replaced")
        attachment = self._attachment(task_id, address, interface)
        if self._settings.ipv6:
            self._adopt_inside6(attachment)
        self._plumb_outside(attachment)
        self._set_hairpin(address)
        return attachment

    def detach(self, task_id: str) -> tuple[Match, ...]:
        """Drop the namespace and let the address rest; returns what to forget. Idempotent."""
        _check_task(task_id, TASK_INTERFACE)
        address = self._pool.release(task_id, now_s=self._clock.monotonic_s())
        if address is not None:
            self._unroute(task_id, address)
        netns.drop(self._path(task_id))
        if address is None:
            return ()
        rest_ms = int(QUARANTINE_S * 1000)
        rest = Element("resting", socket.inet_aton(address), timeout_ms=rest_ms)
        hairpins = self._hairpins & _hairpins_of(address)
        self._nft.apply(sorted(hairpins, key=_place), [rest])
        self._hairpins -= hairpins
        return everything_of(address)

    def sweep(self) -> list[str]:
        """Drop namespaces and hairpin entries of tasks nobody attached or adopted."""
        known = self._pool.held
        strays = sorted(p.name for p in self._directory.iterdir() if p.name not in known)
        for name in strays:
            netns.drop(self._directory / name)
        alive = {one for address in known.values() for one in _hairpins_of(address)}
        stale = self._hairpins - alive
        self._nft.apply(sorted(stale, key=_place), [])
        self._hairpins -= stale
        return strays

    def sockets(self, task_id: str) -> NamespaceSockets:
        """A view of the sockets in the task's namespace; the caller closes it. Raises: OSError."""
        _check_task(task_id, TASK_INTERFACE)
        with netns.entered(self._path(task_id)):
            return NamespaceSockets()

    def stats(self, task_id: str) -> LinkStats:
        """Counters of the task's link. Raises: NotFound."""
        if self._pool.address_of(task_id) is None:
            raise NotFound(f"task {task_id} has no network here")
        try:
            return route.stats_of(self._route, _host_name(task_id))
        except NetlinkError as error:
            if error.errno != errno.ENODEV:
                raise
            raise NotFound(f"task {task_id}: its network link is gone") from error

    def _grant(self, task_id: str, address: str | None) -> Grant:
        if address is None:
            return self._pool.allocate(task_id, now_s=self._clock.monotonic_s())
        self._pool.adopt(task_id, address)
        return Grant(address)

    def _plumb_inside(self, path: Path, attachment: Attachment) -> None:
        with netns.fresh(path, self._settings.owner) as inside_fd:
            host = (_host_name(attachment.task_id), HOST_MAC)
            task = (attachment.interface, task_mac(attachment.address))
            # The default, so that the link is born with it: changing it later waits for the
            # kernel's global lock, by spinning, longer than making the link takes.
            sysctl.try_write(_NEW_WITHOUT_IPV6, "0" if self._settings.ipv6 else "1")
            # This socket stayed in the root namespace; only the thread moved.
            self._route.transact(
                [
                    route.add_veth(
                        host=host, task=task, mtu=self._settings.mtu, netns_fd=inside_fd
                    ),
                    *self._without_link_local(host[0]),
                ]
            )
            index = socket.if_nametoindex(attachment.interface)
            default = route.Route(destination="0.0.0.0/0", gateway=self._gateway, device=index)
            gateway = route.Route(destination=f"{self._gateway}/32", device=index)
            with NetlinkSocket(NETLINK_ROUTE) as inside:
                inside.transact(
                    [
                        route.set_up(socket.if_nametoindex("lo")),
                        *self._without_link_local(attachment.interface),
                        route.set_up(index),
                        route.add_address(index, attachment.address),
                        route.put_neighbour(index, self._gateway, HOST_MAC),
                        route.put_route(gateway),
                        route.put_route(default),
                    ]
                )
                if self._settings.ipv6:
                    self._plumb_inside6(inside, index, attachment.address)

    def _without_link_local(self, name: str) -> list[Message]:
        return [route.set_without_link_local(name)] if self._settings.ipv6 else []

    def _plumb_inside6(self, inside: NetlinkSocket, index: int, address: str) -> None:
        """What the IPv4 address has, for its twin; the thread is in the task's namespace."""
        gateway = twin(self._gateway)
        inside.transact(
            [
                route.add_address(index, twin(address)),
                route.put_neighbour(index, gateway, HOST_MAC),
                route.put_route(route.Route(destination=f"{gateway}/128", device=index)),
                route.put_route(route.Route(destination="::/0", gateway=gateway, device=index)),
            ]
        )
        # Whatever else comes here, overlay networks say, has IPv6 where it is asked for only.
        sysctl.try_write(_NEW_WITHOUT_IPV6, "1")

    def _adopt_inside6(self, attachment: Attachment) -> None:
        """Give the task its twin, if it is of a time without; not where it was told to have none.

        A task's own settings forbid IPv6 for everything, ours did so for new devices only.
        """
        with netns.entered(self._path(attachment.task_id)):
            if ipv6.why_missing():
                return
            sysctl.ensure(f"ipv6/conf/{attachment.interface}/disable_ipv6", "0")
            index = socket.if_nametoindex(attachment.interface)
            with NetlinkSocket(NETLINK_ROUTE) as inside:
                self._plumb_inside6(inside, index, attachment.address)

    def _plumb_outside(self, attachment: Attachment) -> None:
        name, address = _host_name(attachment.task_id), attachment.address
        index = socket.if_nametoindex(name)
        self._route.transact(
            [
                route.put_route(route.Route(destination=f"{address}/32", device=index)),
                route.put_neighbour(index, address, task_mac(address)),
            ]
        )
        sysctl.write(f"ipv4/conf/{name}/route_localnet", "1")
        sysctl.write(f"ipv4/conf/{name}/rp_filter", "1")
        if not self._settings.ipv6:
            sysctl.try_write(f"ipv6/conf/{name}/disable_ipv6", "1")
            return
        sysctl.write(f"ipv6/conf/{name}/accept_ra", "0")
        sysctl.ensure(f"ipv6/conf/{name}/disable_ipv6", "0")
        self._plumb_outside6(index, attachment.address)

    def _plumb_outside6(self, index: int, address: str) -> None:
        six = twin(address)
        self._route.transact(
            [
                route.put_route(route.Route(destination=f"{six}/128", device=index)),
                route.put_neighbour(index, six, task_mac(address)),
            ]
        )
        try:
            self._route.transact([route.add_route(loopback6_route(index))])
        except NetlinkError as error:
            if error.errno != errno.EEXIST:
                raise

    def _set_hairpin(self, address: str) -> None:
        missing = _hairpins_of(address) - self._hairpins
        self._nft.apply([], sorted(missing, key=_place))
        self._hairpins |= missing

    def _unroute(self, task_id: str, address: str) -> None:
        """Refuse packets for the address at once, not when the kernel has ended the namespace."""
        index = _index_of(_host_name(task_id))
        if index is None:
            return
        routes = [f"{address}/32"]
        if self._settings.ipv6:
            routes.append(f"{twin(address)}/128")
        for destination in routes:
            host_route = route.Route(destination=destination, device=index)
            try:
                self._route.transact([route.delete_route(host_route)])
            except NetlinkError as error:
                if error.errno not in (errno.ENODEV, errno.ESRCH):
                    raise

    def _attachment(self, task_id: str, address: str, interface: str) -> Attachment:
        return Attachment(task_id, str(self._path(task_id)), address, self._gateway, interface)

    def _path(self, task_id: str) -> Path:
        return self._directory / task_id


def everything_of(address: str) -> tuple[Match, ...]:
    """The tracked connections from and to a task's address, and its twin."""
    return tuple(
        Match(address=one, original=original)
        for one in (address, twin(address))
        for original in (False, True)
    )


def _host_name(task_id: str) -> str:
    return f"gt{task_id[:11]}"


def _hairpins_of(address: str) -> set[Element]:
    """What tells a task that reaches itself, for its address and for the twin."""
    four, six = socket.inet_aton(address), socket.inet_pton(socket.AF_INET6, twin(address))
    return {Element(_HAIRPIN_SETS[0], four * 2), Element(_HAIRPIN_SETS[1], six * 2)}


def _place(element: Element) -> tuple[str, bytes]:
    return element.set_name, element.key


def _index_of(name: str) -> int | None:
    try:
        return socket.if_nametoindex(name)
    except OSError:  # it carries no errno
        return None


def _check_task(task_id: str, interface: str) -> None:
    if not _TASK_ID.fullmatch(task_id):
        raise InvalidArgument(f"task id {task_id!r} must be 1..64 letters, digits, - or _")
    if not _INTERFACE.fullmatch(interface):
        raise InvalidArgument(f"interface {interface!r} is not an interface name")
