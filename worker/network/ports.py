"""Holding published ports: a bound socket each, so that no host process listens there.

Invariant: while a port is held no other process can bind it, and the kernel gives it to no outgoing
connection. Refuses a port another process listens on, with the error users see. An outgoing
connection that happens to use the port is no reason to refuse: it is not translated by the mesh. A
port at one address is held there alone: elsewhere the number is the host's.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterator
from ipaddress import ip_address

from worker.network import sysctl

_LISTEN = "0A"
_UNCONNECTED = "07"
_IP_FREEBIND = 15
_BOUND_STATES = {"tcp": _LISTEN, "udp": _UNCONNECTED}
_KINDS = {
    "tcp": (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    "udp": (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
    "sctp": (socket.SOCK_STREAM, socket.IPPROTO_SCTP),
}
_TRACKS_ANY = "netfilter/nf_conntrack_max"
_TRACKS_SCTP = "netfilter/nf_conntrack_sctp_timeout_established"


Held = tuple[str, int, str]
"""Protocol, port, and the address, or "" for every one."""


class PortHolder:
    """The sockets that hold this node's published ports."""

    def __init__(self) -> None:
        self._held: dict[Held, socket.socket] = {}

    @property
    def held(self) -> list[Held]:
        """What is held now."""
        return list(self._held)

    def hold(self, protocol: str, port: int, address: str = "") -> str:
        """Hold the port at one address, or at all; returns why not, empty on success. Idempotent.

        A port that only an outgoing connection uses counts as a success, and so does one that is
        held at another place; holding it is tried again at the next call.
        """
        if (protocol, port, address) in self._held:
            return ""
        if protocol == "sctp" and (problem := why_no_sctp()):
            return f"port {port}/sctp: {problem}"
        try:
            self._held[protocol, port, address] = _bound(protocol, port, address)
        except OSError as error:
            name = f"port {at(address)}{port}/{protocol}"
            if error.errno != errno.EADDRINUSE:
                return f"{name} cannot be bound on this node: {error.strerror}"
            ours = {held[2] for held in self._held if held[:2] == (protocol, port)}
            if is_taken(protocol, port, address, ours=ours):
                return f"{name} is in use by another process on this node"
        return ""

    def release(self, protocol: str, port: int, address: str = "") -> None:
        """Let the port go. Idempotent."""
        held = self._held.pop((protocol, port, address), None)
        if held is not None:
            held.close()

    def close(self) -> None:
        """Let every port go."""
        for held in self._held.values():
            held.close()
        self._held.clear()


def at(address: str) -> str:
    """An address before a port, as people are shown it; "" stays."""
    return f"[{address}]:" if ":" in address else f"{address}:" if address else ""


def why_no_sctp() -> str:
    """Why the mesh cannot carry SCTP here; empty if it can. Loads the module where there is one."""
    try:
        socket.socket(socket.AF_INET, *_KINDS["sctp"]).close()
    except OSError:
        return "this node's kernel has no SCTP: load its module (modprobe sctp)"
    # Before the module of connection tracking is loaded there is neither.
    if sysctl.exists(_TRACKS_ANY) and not sysctl.exists(_TRACKS_SCTP):
        return "this node's kernel tracks no SCTP connections (CONFIG_NF_CT_PROTO_SCTP)"
    return ""


def _bound(protocol: str, port: int, address: str) -> socket.socket:
    """A socket at the address, or on every one of both families (of IPv4 where there is no IPv6).

    The address need not be here: it may come later.
    """
    if address:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        bound = socket.socket(family, *_KINDS[protocol])
        bound.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)  # of either family
        return _bind(bound, protocol, address, port)
    try:
        bound = socket.socket(socket.AF_INET6, *_KINDS[protocol])
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        bound = socket.socket(socket.AF_INET, *_KINDS[protocol])
        return _bind(bound, protocol, "0.0.0.0", port)  # noqa: S104
    bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    return _bind(bound, protocol, "::", port)


def _bind(bound: socket.socket, protocol: str, address: str, port: int) -> socket.socket:
    try:
        if protocol == "tcp":
            # Connections in TIME_WAIT must not look like a listener; a listener still refuses us.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        elif protocol == "udp":
            # Nothing reads it, and only packets that slip in before the rules could arrive.
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        bound.bind((address, port))
        if protocol == "tcp":
            bound.listen(0)
    except BaseException:
        bound.close()
        raise
    return bound


def is_taken(protocol: str, port: int, address: str = "", *, ours: Collection[str] = ()) -> bool:
    """Whether a socket waits for strangers there (and not just talks from the port).

    address: "" for every one, of which a single one is enough. ours: where sockets do not count. Of
    SCTP, which tells nobody so much, whether any socket but ours has the port, as far as it shows.
    """
    if protocol == "sctp":
        return not ours
    wanted = _BOUND_STATES[protocol]
    return any(
        local == port
        and state == wanted
        and (not address or where in ("", address))
        and where not in ours
        for family in ("", "6")
        for where, local, state in _sockets(f"/proc/thread-self/net/{protocol}{family}")
    )


def _sockets(path: str) -> Iterator[tuple[str, int, str]]:
    """(local address, "" for every one; local port, state) of every socket in a /proc/net table."""
    try:
        table = open(path)  # noqa: SIM115 - the with below owns it
    except FileNotFoundError:
        return
    with table:
        next(table, None)
        for line in table:
            fields = line.split()
            local, _, number = fields[1].rpartition(":")
            (port,) = struct.unpack("!H", bytes.fromhex(number))
            yield _address(local), port, fields[3]


def _address(words: str) -> str:
    """An address as /proc/net writes it: in words of 32 bits, each in the machine's order."""
    packed = b"".join(
        struct.pack("=I", int(words[start : start + 8], 16)) for start in range(0, len(words), 8)
    )
    address = ip_address(packed)
    mapped = getattr(address, "ipv4_mapped", None)
    return "" if address.is_unspecified else str(mapped or address)
