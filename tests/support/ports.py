"""Ports on loopback for servers that are started later, or killed and started again.

They lie below the range from which outgoing connections take theirs, so that no connection gets one
while its server is away. Of test processes side by side each has a share of its own, and no port is
given twice.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket

_FIRST, _LAST = 20_000, 31_999
_given: set[int] = set()
# Not the module's own numbers: property tests begin those anew, and they repeat.
_chance = random.SystemRandom()


def free_port() -> int:
    """A port that nobody listens on."""
    index = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = (_LAST - _FIRST + 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    while True:
        port = _FIRST + share * index + _chance.randrange(share)
        if port not in _given:
            with contextlib.suppress(OSError):
                socket.create_server(("127.0.0.1", port)).close()
                _given.add(port)
                return port
