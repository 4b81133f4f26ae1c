"""Docker's framing of several streams in one connection. Pure.

A frame is eight bytes (stream number, three zeros, length, big endian) and the payload. A terminal
has one stream and no frames.
"""

from __future__ import annotations

import struct

STDIN = 0
STDOUT = 1
STDERR = 2
SYSTEM_ERROR = 3
RAW = "application/vnd.docker.raw-stream"
MULTIPLEXED = "application/vnd.docker.multiplexed-stream"

_HEAD = struct.Struct(">BxxxI")


def frame(stream: int, payload: bytes) -> bytes:
    """One frame; payloads are at most 4 GiB, and ours far smaller."""
    return _HEAD.pack(stream, len(payload)) + payload
