"""Bring one blob of a registry to a file: resumed where it broke off, verified when it is whole.

The registry is not believed: not more is written than the manifest names, and the digest is
computed here. A connection that breaks is tried again from where it broke as long as it gets
further, a bounded number of times. What is there of a blob stays for the next pull when this one
fails or is given up, but not when its content was wrong or the disk is full.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from shoal.errors import InvalidArgument, ResourceExhausted, SwarmError, Unavailable
from worker.images.keyed import uninterrupted
from worker.images.oci import Descriptor
from worker.images.registry.client import RegistryClient
from worker.images.registry.metrics import RECEIVED
from worker.images.registry.refusals import ATTEMPTS_MAX, Refusal

PIECE_BYTES = 1 << 20
PROGRESS_BYTES = 64 << 10
"""An attempt that brought as much has got further, and is not counted."""
ATTEMPTS_IN_ALL_MAX = 100
_SPACE_CHECK_BYTES = 16 << 20


class Partial:
    """What is there of a blob. Blocking: use threads."""

    def __init__(self, path: Path, reserve_bytes: int) -> None:
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._hash = hashlib.sha256()
        self._checked = 0
        self.size = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_EX)  # it is not cleared away as forgotten
        while data := os.read(self._fd, PIECE_BYTES):
            self._hash.update(data)
            self.size += len(data)
        os.utime(self._fd)
        self._check_space()

    def write(self, data: bytes) -> None:
        """Append. Raises ResourceExhausted, OSError."""
        if self.size - self._checked >= _SPACE_CHECK_BYTES:
            self._checked = self.size
            self._check_space()
        self._hash.update(data)
        self.size += len(data)
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._fd, rest) :]

    def restart(self) -> None:
        """Forget everything."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._hash = hashlib.sha256()
        self.size = self._checked = 0

    def digest(self) -> str:
        """Of what is there."""
        return f"sha256:{self._hash.hexdigest()}"

    def close(self, *, keep: bool) -> None:
        """Done with it. keep: it may serve the next pull."""
        os.close(self._fd)
        if not keep:
            self._path.unlink(missing_ok=True)

    def _check_space(self) -> None:
        found = os.fstatvfs(self._fd)
        free_bytes = found.f_bavail * found.f_frsize
        if free_bytes < self._reserve_bytes:
            raise ResourceExhausted(
                f"image store: {free_bytes} bytes are free and {self._reserve_bytes} must remain:"
                " remove images or enlarge the disk"
            )


class Download:
    """One blob on its way. told: how many bytes are there."""

    def __init__(
        self, client: RegistryClient, repository: str, blob: Descriptor, told: Callable[[int], None]
    ) -> None:
        self._client = client
        self._path = f"v2/{repository}/blobs/{blob.digest}"
        self._scope = f"repository:{repository}:pull"
        self._blob = blob
        self._told = told

    async def to(self, path: Path, reserve_bytes: int) -> None:
        """Bring it to `path`, which may hold a part of it already.

        Raises InvalidArgument for other content than was named, ResourceExhausted, OSError, and as
        `RegistryClient`.
        """
        partial = await uninterrupted(asyncio.to_thread(Partial, path, reserve_bytes))
        keep = True
        try:
            await self._whole(partial)
        except (InvalidArgument, ResourceExhausted, OSError):
            keep = False
            raise
        finally:
            partial.close(keep=keep)

    async def _whole(self, partial: Partial) -> None:
        mismatches = 0
        while True:
            await self._persistently(partial)
            if partial.digest() == self._blob.digest:
                return
            mismatches += 1
            await uninterrupted(asyncio.to_thread(partial.restart))
            if mismatches > 1:
                raise InvalidArgument(
                    f"filesystem layer verification failed for digest {self._blob.digest}: the"
                    " registry sends other content"
                )

    async def _persistently(self, partial: Partial) -> None:
        attempt = in_all = 1
        while True:
            before = partial.size
            try:
                await self._more(partial)
                if partial.size == self._blob.size:
                    return
                raise Unavailable(
                    f"blob {self._blob.digest}: the registry sent {partial.size} of"
                    f" {self._blob.size} bytes"
                )
            except SwarmError as error:
                if not error.retryable or in_all >= ATTEMPTS_IN_ALL_MAX:
                    raise
                attempt = 1 if partial.size - before >= PROGRESS_BYTES else attempt + 1
                if attempt > ATTEMPTS_MAX:
                    raise
                await self._client.pause(attempt, str(error.context.get("retry_after", "")))
            in_all += 1

    async def _more(self, partial: Partial) -> None:
        """One attempt at what is missing."""
        if partial.size > self._blob.size:
            await uninterrupted(asyncio.to_thread(partial.restart))
        if partial.size == self._blob.size and self._blob.size:
            return
        headers = {"Range": f"bytes={partial.size}-"} if partial.size else {}
        try:
            async with self._client.call(
                "GET", self._path, scope=self._scope, headers=headers
            ) as answer:
                if partial.size and not _continues(answer.status, answer.headers, partial.size):
                    await uninterrupted(asyncio.to_thread(partial.restart))
                await self._copy(answer.content.iter_any(), partial)
        except Refusal as refusal:
            if refusal.status != 416:
                raise
            await uninterrupted(asyncio.to_thread(partial.restart))
            raise Unavailable(f"blob {self._blob.digest}: {refusal.message}") from refusal

    async def _copy(self, source: AsyncIterator[bytes], partial: Partial) -> None:
        """Write what comes, in pieces worth a thread's while; what has come is kept on any end."""
        held: list[bytes] = []
        size = 0
        try:
            async for data in source:
                held.append(data)
                size += len(data)
                RECEIVED.inc(len(data))
                if partial.size + size > self._blob.size:
                    raise InvalidArgument(
                        f"blob {self._blob.digest}: the registry sends more than the"
                        f" {self._blob.size} bytes its manifest names"
                    )
                if size >= PIECE_BYTES:
                    piece, held, size = b"".join(held), [], 0
                    await uninterrupted(asyncio.to_thread(partial.write, piece))
                    self._told(partial.size)
        finally:
            if held and partial.size + size <= self._blob.size:
                partial.write(b"".join(held))
                self._told(partial.size)


def _continues(status: int, headers: Mapping[str, str], size: int) -> bool:
    """Whether the answer goes on where we are."""
    found = headers.get("Content-Range", "")
    return status == 206 and found.removeprefix("bytes ").startswith(f"{size}-")
