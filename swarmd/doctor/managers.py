"""Asks every manager that this node knows, over the port and with the certificate all nodes use.

Changes nothing. A manager that does not answer costs a few seconds, and all are asked at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from shoal.clock import NS_PER_S, Clock
from shoal.errors import SwarmError
from shoal.security.identity import NodeIdentity
from swarmd.ca_client import ask_clock
from swarmd.doctor.core import Heard

MANAGERS_MAX = 16


async def hear(managers: Sequence[str], identity: NodeIdentity, clock: Clock) -> tuple[Heard, ...]:
    """What came back from each address, in order."""

    async def one(address: str) -> Heard:
        try:
            found = await ask_clock(address, identity, clock)
        except SwarmError as error:
            return Heard(address, error=error.message)
        if found is None:
            return Heard(address)
        return Heard(
            address, ahead_s=found.ahead_ns / NS_PER_S, uncertain_s=found.uncertain_ns / NS_PER_S
        )

    return tuple(await asyncio.gather(*map(one, managers[:MANAGERS_MAX])))
