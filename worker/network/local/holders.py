"""Sockets that hold the numbers of published ports, so that no other process takes them.

Packets over IPv4 never reach them: they are translated before. Those over IPv6 do where the
container has none, and on `::1`: the relay has the same sockets and listens. Invariant: a number is
held once per address and protocol, and every address of the node includes each single one.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from shoal.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from worker.network.local.api import PortBinding

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_QUEUE = 1024
"""Clients that may wait until the relay takes their connections."""
_KINDS = {
    "tcp": (socket.SOCK_STREAM, 0),
    "udp": (socket.SOCK_DGRAM, 0),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}


class Taken(Exception):
    """The port cannot be had; the message says why."""


class Holders:
    """The ports of all containers; used by one thread."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str, int], list[socket.socket]] = {}
        self._next = 0

    def hold_all(self, wanted: Iterable[PortBinding]) -> tuple[PortBinding, ...]:
        """Hold every port or none; the result has the numbers that were chosen.

        Raises: FailedPrecondition `Bind for 0.0.0.0:80 failed: port is already allocated`.
        """
        held: list[PortBinding] = []
        try:
            held.extend(map(self._hold_one, wanted))
        except BaseException:
            self.release_all(held)
            raise
        return tuple(held)

    def hold_again(
        self, bindings: Iterable[PortBinding], kept: Mapping[str, socket.socket] | None = None
    ) -> list[str]:
        """After a restart: hold what is published already. Result: what could not be held.

        kept: sockets that were held all the time, by `name`; they are ours from now on.
        """
        problems = []
        for binding in bindings:
            try:
                self._hold(binding, binding.host_port, kept or {})
            except Taken as taken:
                problems.append(str(taken))
        return problems

    def six(self, binding: PortBinding) -> socket.socket | None:
        """The socket that holds a port for IPv6, if one does."""
        held = self._held.get(_key(binding, binding.host_port), ())
        return next((one for one in held if one.family == socket.AF_INET6), None)

    def release_all(self, bindings: Iterable[PortBinding]) -> None:
        """Let ports go. Idempotent."""
        for binding in bindings:
            for held in self._held.pop(_key(binding, binding.host_port), ()):
                held.close()

    def close(self) -> None:
        """Let every port go."""
        for sockets in self._held.values():
            for held in sockets:
                held.close()
        self._held.clear()

    def _hold_one(self, binding: PortBinding) -> PortBinding:
        if binding.protocol == "sctp" and not has_sctp():
            raise Unimplemented(
                f"port {binding.container_port}/sctp: this node's kernel has no SCTP: load its"
                " module (modprobe sctp)"
            )
        for port in self._candidates(binding):
            try:
                self._hold(binding, port)
            except Taken as taken:
                if not binding.host_port or binding.host_port_end:
                    continue
                shown = binding.host_address or "0.0.0.0"  # noqa: S104 - shown, not bound
                raise FailedPrecondition(f"Bind for {shown}:{port} failed: {taken}") from None
            return msgspec.structs.replace(binding, host_port=port, host_port_end=0)
        if binding.host_port:
            shown = binding.host_address or "0.0.0.0"  # noqa: S104 - shown, not bound
            raise FailedPrecondition(
                f"Bind for {shown}:{binding.host_port}-{binding.host_port_end} failed: all ports"
                " are allocated"
            )
        raise ResourceExhausted("all ports of net.ipv4.ip_local_port_range are allocated")

    def _candidates(self, binding: PortBinding) -> Iterable[int]:
        if binding.host_port:
            yield from range(binding.host_port, (binding.host_port_end or binding.host_port) + 1)
            return
        first, last = map(int, _EPHEMERAL.read_text().split())
        size = last - first + 1
        start = self._next
        for step in range(size):
            self._next = (start + step + 1) % size
            yield first + (start + step) % size

    def _hold(
        self,
        binding: PortBinding,
        port: int,
        kept: Mapping[str, socket.socket] = MappingProxyType({}),
    ) -> None:
        for protocol, address, number in self._held:
            same = not address or not binding.host_address or address == binding.host_address
            if protocol == binding.protocol and number == port and same:
                raise Taken("port is already allocated")
        self._held[_key(binding, port)] = _bound(binding, port, kept)


def name(binding: PortBinding) -> str:
    """What a port is called towards the relay."""
    return f"local {binding.protocol} {binding.host_address} {binding.host_port}"


def has_sctp() -> bool:
    """Whether the kernel makes SCTP sockets; asking loads its module where there is one."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return False
    return True


def _key(binding: PortBinding, port: int) -> tuple[str, str, int]:
    return binding.protocol, binding.host_address, port


def _bound(
    binding: PortBinding, port: int, kept: Mapping[str, socket.socket]
) -> list[socket.socket]:
    found: list[socket.socket] = []
    address = binding.host_address
    with contextlib.ExitStack() as undo:
        for place in (address,) if address else ("0.0.0.0", "::"):  # noqa: S104 - held, not served
            known = kept.get(name(binding)) if ":" in place else None
            try:
                made = known or _bind(binding.protocol, place, port)
            except OSError as error:
                if place == "::" and error.errno in {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}:
                    continue  # a node without IPv6
                if error.errno == errno.EADDRNOTAVAIL:
                    raise InvalidArgument(f"no interface of this node has {address}") from None
                raise Taken("address already in use") from None
            undo.callback(made.close)
            found.append(made)
        undo.pop_all()
    return found


def _bind(protocol: str, address: str, port: int) -> socket.socket:
    six = ipaddress.ip_address(address).version == 6
    made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, *_KINDS[protocol])
    try:
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol != "udp":
            # Connections in TIME_WAIT must not look like a listener; a listener refuses us still.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        made.setblocking(False)  # who serves it shares this
        made.bind((address, port))
        if protocol != "udp":
            made.listen(_QUEUE if six and protocol == "tcp" else 0)
    except BaseException:
        made.close()
        raise
    return made
