"""Holding published ports: a bound socket each, so that no host process listens there.

Invariant: while a port is held no other process can bind it, and the kernel gives it to no outgoing
connection. Refuses a port another process listens on, with the error users see. An outgoing
connection that happens to use the port is no reason to refuse: it is not translated by the mesh.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

_LISTEN = "0A"
_UNCONNECTED = "07"
_BOUND_STATES = {"tcp": _LISTEN, "udp": _UNCONNECTED}


class PortHolder:
    """The sockets that hold this node's published ports, by (protocol, port)."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int], socket.socket] = {}

    @property
    def held(self) -> list[tuple[str, int]]:
        """The (protocol, port) pairs held now."""
        return list(self._held)

    def hold(self, protocol: str, port: int) -> str:
        """Hold the port; returns why not, empty on success. Idempotent.

        A port that only an outgoing connection uses counts as a success; holding it is tried again
        at the next call.
        """
        if (protocol, port) in self._held:
            return ""
        try:
            self._held[protocol, port] = _bound(protocol, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return f"port {port}/{protocol} cannot be bound on this node: {error.strerror}"
            if is_taken(protocol, port):
                return f"port {port}/{protocol} is in use by another process on this node"
        return ""

    def release(self, protocol: str, port: int) -> None:
        """Let the port go. Idempotent."""
        held = self._held.pop((protocol, port), None)
        if held is not None:
            held.close()

    def close(self) -> None:
        """Let every port go."""
        for held in self._held.values():
            held.close()
        self._held.clear()


def _bound(protocol: str, port: int) -> socket.socket:
    """A socket on every address of both families (of IPv4 where there is no IPv6)."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    try:
        bound = socket.socket(socket.AF_INET6, kind)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return _bind(socket.socket(socket.AF_INET, kind), "0.0.0.0", port)  # noqa: S104
    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return _bind(bound, "::", port)


def _bind(bound: socket.socket, address: str, port: int) -> socket.socket:
    try:
        if bound.type == socket.SOCK_STREAM:
            # Connections in TIME_WAIT must not look like a listener; a listener still refuses us.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        else:
            # Nothing reads it, and only packets that slip in before the rules could arrive.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        bound.bind((address, port))
        if bound.type == socket.SOCK_STREAM:
            bound.listen(0)
    except BaseException:
        bound.close()
        raise
    return bound


def is_taken(protocol: str, port: int) -> bool:
    """Whether a socket waits for strangers on the port (and not just talks from it)."""
    wanted = _BOUND_STATES[protocol]
    return any(
        local == port and state == wanted
        for family in ("", "6")
        for local, state in _sockets(f"/proc/thread-self/net/{protocol}{family}")
    )


def _sockets(path: str) -> Iterator[tuple[int, str]]:
    """(local port, state) of every socket in a /proc/net table."""
    try:
        table = open(path)  # noqa: SIM115 - the with below owns it
    except FileNotFoundError:
        return
    with table:
        next(table, None)
        for line in table:
            fields = line.split()
            (port,) = struct.unpack("!H", bytes.fromhex(fields[1].rpartition(":")[2]))
            yield port, fields[3]
