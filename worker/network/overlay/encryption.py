"""Encrypted networks of this node: its keys, and the tunnels that the wish of a version needs.

Invariant: a network that is encrypted is built through the tunnels or refused with a reason, never
in the clear. Every method blocks and belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from shoal.errors import FailedPrecondition
from worker.network import route
from worker.network.api import NetworkSettings
from worker.network.keys import PrivateKeys
from worker.network.netlink import NetlinkSocket
from worker.network.overlay import secrecy
from worker.network.overlay.api import OverlayState
from worker.network.overlay.secrecy import Tunnels
from worker.network.overlay.tunnels import TunnelSpace
from worker.network.wireguard import MISSING, OVERHEAD_BYTES

_NO_KEYS: Final = "node has no WireGuard key yet: see its log"


def mtu_within(settings: NetworkSettings) -> int:
    """Bytes of a packet inside an encrypted network, where the underlay decides."""
    return settings.mtu - OVERHEAD_BYTES


class Encryption:
    """All of it. `behind`: how many peers are spoken to by an older key than their newest."""

    def __init__(self, settings: NetworkSettings, home: NetlinkSocket) -> None:
        self._settings = settings
        self._home = home
        self._space = TunnelSpace(settings, home)
        self._keys = PrivateKeys()
        self._state = OverlayState()
        self._wanted = Tunnels()
        self._mtu = 0
        self._is_missing = False
        self.behind = 0

    @property
    def netlink(self) -> NetlinkSocket:
        """What VXLAN devices of encrypted networks are made through."""
        return self._space.netlink

    @property
    def generation(self) -> int:
        """Of the newest key in force; 0 without one."""
        return max(self._keys.by_generation, default=0)

    @property
    def peers(self) -> int:
        """How many nodes this one reaches on encrypted networks."""
        return len(self._wanted.generations())

    def open(self) -> None:
        """Find out what the kernel can do."""
        self._is_missing = not route.probe_kind(self._home, "wireguard")

    def use_keys(self, keys: PrivateKeys) -> None:
        """Speak with these keys from now on, or with those of before when it raises.

        Raises: FailedPrecondition, NetlinkError.
        """
        before, self._keys = self._keys, keys
        try:
            if self._space.is_open and keys.by_generation:
                self._build()
        except BaseException:
            self._keys = before
            raise

    def prepare(self, state: OverlayState, mtus: Iterable[int]) -> str:
        """Make whoever is needed reachable. Result: why encrypted networks cannot be built here.

        mtus: of the encrypted networks of `state`. Raises: NetlinkError.
        """
        self._state, self._mtu = state, max(mtus, default=0)
        if not self._mtu:
            return ""
        if self._is_missing:
            return MISSING
        if not self._keys.by_generation:
            return _NO_KEYS
        try:
            self._build()
        except FailedPrecondition as error:
            return error.message
        return ""

    def finish(self, *, is_used: bool) -> None:
        """Forget whoever is not needed any more; everything, unless some network `is_used`."""
        if not is_used:
            self._space.drop()
            self._wanted, self.behind = Tunnels(), 0
        elif self._space.is_open:
            self._space.drop_others(self._wanted)

    def settle(self) -> None:
        """Look whether peers have proved their newer keys by now."""
        if self._space.is_open:
            self.behind = self._space.settle(self._wanted)

    def forget(self) -> None:
        """Look at the kernel again before the next change."""
        self._space.forget()

    def close(self, *, remove: bool) -> None:
        """Let go; with `remove`, take it off this node."""
        if remove:
            self._space.drop()
        self._space.forget()

    def _build(self) -> None:
        self._space.ensure(self._keys, self._mtu)
        self._wanted = secrecy.tunnels(
            self._keys.by_generation,
            self._state,
            self._settings.underlay_address,
            self._settings.data_path_port,
        )
        self.behind = self._space.put(self._wanted)
