"""One file from the web into a directory of the node's own, as a build's `ADD` wants it.

Mode 0600, and the time the server says it was changed, as Docker does it; nothing is unpacked.
Bounded in size, time and redirections; what is not whole is not there. Only HTTP is spoken.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

import aiohttp

from shoal.errors import DeadlineExceeded, InvalidArgument, ResourceExhausted, Unavailable

BYTES_MAX: Final = 8 << 30
TOTAL_S: Final = 3600.0
_CONNECT_S: Final = 30.0
_SILENCE_S: Final = 60.0
_REDIRECTIONS_MAX: Final = 10
_PIECE_BYTES: Final = 1 << 20
_REASON_BYTES_MAX: Final = 4096
Progress = Callable[[int, int], Awaitable[None]]
"""Told how many bytes have come, and of how many; 0: the server does not say."""


async def download(
    url: str, target: Path, progress: Progress, *, bytes_max: int = BYTES_MAX
) -> None:
    """Fetch a file.

    Raises: InvalidArgument (not found, no URL), Unavailable (no answer, broken off),
    DeadlineExceeded, ResourceExhausted (too large, or the disk is full).
    """
    timeout = aiohttp.ClientTimeout(total=TOTAL_S, connect=_CONNECT_S, sock_read=_SILENCE_S)
    try:
        async with (
            aiohttp.ClientSession(
                timeout=timeout, auto_decompress=False, trust_env=True,
                headers={"Accept-Encoding": "identity"},
            ) as session,
            session.get(url, max_redirects=_REDIRECTIONS_MAX) as answer,
        ):  # fmt: skip
            if answer.status >= 400:
                said = await answer.content.read(_REASON_BYTES_MAX)
                raise InvalidArgument(
                    f"failed to GET {url} with status {answer.status} {answer.reason}:"
                    f" {said.decode('utf-8', 'replace').strip()}"
                )
            await _take(url, answer, target, progress, bytes_max)
            changed_ns = _changed_ns(answer.headers)
    except (aiohttp.InvalidURL, aiohttp.TooManyRedirects) as error:
        raise InvalidArgument(f"{url}: {str(error) or type(error).__name__}") from None
    except TimeoutError:
        raise DeadlineExceeded(
            f"{url}: nothing came for {_SILENCE_S:.0f} s, or not all within {TOTAL_S:.0f} s"
        ) from None
    except aiohttp.ClientError as error:
        raise Unavailable(f"Get {url!r}: {str(error) or type(error).__name__}") from None
    os.utime(target, ns=(changed_ns, changed_ns))


async def _take(
    url: str, answer: aiohttp.ClientResponse, target: Path, progress: Progress, bytes_max: int
) -> None:
    total = answer.content_length or 0
    if total > bytes_max:
        raise ResourceExhausted(f"{url}: {total} bytes: a build takes at most {bytes_max}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(target, flags, 0o600)
    try:
        come = 0
        async for piece in answer.content.iter_chunked(_PIECE_BYTES):
            come += len(piece)
            if come > bytes_max:
                raise ResourceExhausted(f"{url}: more than the {bytes_max} bytes a build takes")
            await asyncio.to_thread(_write, fd, piece)
            await progress(come, total)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise ResourceExhausted(f"{url}: {error.strerror}") from None
    finally:
        os.close(fd)


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def _changed_ns(headers: Mapping[str, str]) -> int:
    """What `Last-Modified` says; without it, or when it is no date, 1970."""
    try:
        moment = parsedate_to_datetime(headers.get("Last-Modified", ""))
    except ValueError:
        return 0
    return max(0, int(moment.timestamp())) * 1_000_000_000
