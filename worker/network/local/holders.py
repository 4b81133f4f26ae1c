"""Sockets that hold the numbers of published ports, so that no other process takes them.

Packets never reach them: they are translated before. Invariant: a number is held once per address
and protocol, and every address of the node includes each single one. A TCP port of every address is
held for IPv6, too, but not listened on: a client that tries `::1` first is refused at once and
comes back over IPv4.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

from shoal.errors import FailedPrecondition, InvalidArgument, ResourceExhausted, Unimplemented
from worker.network.local.api import PortBinding

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_KINDS = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


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

    def hold_again(self, bindings: Iterable[PortBinding]) -> list[str]:
        """After a restart: hold what is published already. Result: what could not be held."""
        problems = []
        for binding in bindings:
            try:
                self._hold(binding, binding.host_port)
            except Taken as taken:
                problems.append(str(taken))
        return problems

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
        if binding.protocol not in _KINDS:
            raise Unimplemented(f"port {binding.container_port}/{binding.protocol}: only tcp, udp")
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

    def _hold(self, binding: PortBinding, port: int) -> None:
        for protocol, address, number in self._held:
            same = not address or not binding.host_address or address == binding.host_address
            if protocol == binding.protocol and number == port and same:
                raise Taken("port is already allocated")
        self._held[_key(binding, port)] = _bound(binding.protocol, binding.host_address, port)


def _key(binding: PortBinding, port: int) -> tuple[str, str, int]:
    return binding.protocol, binding.host_address, port


def _bound(protocol: str, address: str, port: int) -> list[socket.socket]:
    found: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for place in (address,) if address else ("0.0.0.0", "::"):  # noqa: S104 - held, not served
            try:
                made = _bind(protocol, place, port)
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
    made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, _KINDS[protocol])
    try:
        if six:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if protocol == "tcp" and not six:
            # Connections in TIME_WAIT must not look like a listener; a listener refuses us still.
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        made.bind((address, port))
        if protocol == "tcp" and not six:
            made.listen(0)
    except BaseException:
        made.close()
        raise
    return made
