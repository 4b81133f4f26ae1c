"""Which managers are silent: whether a TCP connection to one can be made, and nothing more.

gRPC takes seconds to give up an address that does not answer, and as long to find that it answers
again. A node that was cut off would balance and resolve by what it knew before for all that time,
so it looks itself: each attempt at a session begins with a connection that is made and closed, and
a pause ends as soon as a manager that was silent takes one. The kernel answers for a busy manager,
so that load is not taken for silence. Addresses that are no TCP addresses are never silent.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final

from shoal.errors import Unavailable

CONNECT_S: Final = 0.5
"""Shorter than the repetition of a SYN: the next look sends one of its own."""
LOOK_S: Final = 0.2


class Reach:
    """Remembers who was silent; at most as many as there are managers."""

    def __init__(self) -> None:
        self._silent: set[str] = set()

    async def require(self, address: str) -> None:
        """Raises: Unavailable when nobody takes a connection there."""
        if await _answers(address):
            self._silent.discard(address)
            return
        self._silent.add(address)
        raise Unavailable(
            f"no connection to {address} within {CONNECT_S:g} s: see that its manager runs, and "
            "that the network and its firewalls let this node reach it"
        )

    async def pause(self, seconds: float, known: tuple[str, ...]) -> str:
        """Wait so long, or until one of `known` that was silent answers. Result: which; or ""."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0:
            await asyncio.sleep(min(left_s, LOOK_S))
            self._silent.intersection_update(known)
            looked = sorted(self._silent)
            found = await asyncio.gather(*map(_answers, looked))
            for address in (at for at, answers in zip(looked, found, strict=True) if answers):
                self._silent.discard(address)
                return address
        return ""


async def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return True
    try:
        async with asyncio.timeout(CONNECT_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    return True
