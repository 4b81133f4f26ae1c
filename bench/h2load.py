"""nghttp2's load generator with gRPC requests: little of it is needed, and the same for everybody.

Every client is one connection with one request under way. h2load sends the same bytes each time
and looks at no gRPC status, so whoever uses it must count by other means what was really done.
"""

from __future__ import annotations

import asyncio
import struct
import tempfile
from pathlib import Path

import msgspec
from google.protobuf.message import Message

WARM_UP_S = 1


class Measured(msgspec.Struct, frozen=True):
    """Without what was done while warming up."""

    answered: int
    rate: float
    p50_ms: float
    p99_ms: float


async def load(port: int, path: str, message: Message, *, clients: int, seconds: float) -> Measured:
    """Call a unary method from so many clients. Raises: RuntimeError when a request failed."""
    body = message.SerializeToString()
    with tempfile.TemporaryDirectory(prefix="shoal-bench-") as scratch:
        data, log = Path(scratch, "body"), Path(scratch, "log")
        data.write_bytes(struct.pack(">BI", 0, len(body)) + body)
        process = await asyncio.create_subprocess_exec(
            "h2load", "-c", str(clients), "-m", "1", "-t", "1",
            "-D", f"{seconds * 1000:.0f}ms", "--warm-up-time", f"{WARM_UP_S}s",
            "-d", str(data), "--log-file", str(log),
            "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"http://127.0.0.1:{port}{path}",
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    if process.returncode != 0 or not lines or any(status != "200" for _, status, _ in lines):
        raise RuntimeError(f"h2load: {said.decode()[-1000:]}")
    taken_us = sorted(int(took) for _, _, took in lines)
    return Measured(
        answered=len(taken_us),
        rate=len(taken_us) / seconds,
        p50_ms=taken_us[len(taken_us) // 2] / 1000,
        p99_ms=taken_us[int(len(taken_us) * 0.99)] / 1000,
    )
