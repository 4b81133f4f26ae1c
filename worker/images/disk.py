"""The store's directories and the few durable moves on them. Everything here blocks: use threads.

    content/blobs/sha256/<hex>   layers, configurations, manifests, as OCI image layout has them
    content/ingest/<job>/        half-made things of running jobs, and trash
    content/partial/<hex>        what has come of a blob when its download broke off
    snapshots/<chain hex>/fs     one directory per chain id, an overlayfs lower layer
    empty                        what an image without layers has for a layer
    images.json                  the index: which images and names exist
    lock                         held by the process that owns the store

Invariant: a blob or snapshot appears under its final name only by rename, complete and synced.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

from shoal.errors import FailedPrecondition
from worker.images.model import digest_hex

_DIRECTORIES = (
    "content", "content/blobs", "content/blobs/sha256", "content/ingest", "content/ingest/trash",
    "content/partial", "snapshots", "empty",
)  # fmt: skip


class Disk:
    """Paths under one store's root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "content" / "blobs" / "sha256"
        self.ingest = root / "content" / "ingest"
        self.trash = self.ingest / "trash"
        self.partials = root / "content" / "partial"
        self.snapshots = root / "snapshots"
        self.index = root / "images.json"
        self.empty = root / "empty"
        self._lock_fd: int | None = None
        self._condemned = 0

    def prepare(self) -> None:
        """Make the directories and take the lock.

        Raises FailedPrecondition if another process owns the store.
        """
        self.root.mkdir(mode=0o710, parents=True, exist_ok=True)
        for name in _DIRECTORIES:
            (self.root / name).mkdir(mode=0o711, exist_ok=True)
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise FailedPrecondition(
                f"image store {self.root} is in use by another process: one worker owns it"
            ) from None
        self._lock_fd = fd

    def release(self) -> None:
        """Give the lock up. Idempotent."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def blob(self, digest: str) -> Path:
        """Where the blob of that digest is, or would be."""
        return self.blobs / digest_hex(digest, "digest")

    def snapshot(self, chain_id: str) -> Path:
        """The directory of that chain id; its content is `fs` inside. Never contains a colon."""
        return self.snapshots / digest_hex(chain_id, "chain id")

    def partial(self, digest: str) -> Path:
        """Where a blob is while it is downloaded. Whoever takes it up again verifies it."""
        return self.partials / digest_hex(digest, "digest")

    def drop_partials(self, before_s: float) -> None:
        """Remove what nobody has gone on with since then, in seconds since 1970."""
        for path in list(self.partials.iterdir()):
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_mtime < before_s:
                    path.unlink(missing_ok=True)
            except BlockingIOError:
                continue  # somebody downloads, however slowly
            finally:
                os.close(fd)

    def sync(self) -> None:
        """Make everything written so far durable: once per job instead of once per file."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.syncfs(fd) != 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error), str(self.root))
        finally:
            os.close(fd)

    def condemn(self, paths: Iterable[Path]) -> None:
        """Move `paths` out of everyone's sight: quick, atomic each, needs no free space."""
        for path in paths:
            self._condemned += 1
            os.rename(path, self.trash / f"{self._condemned}-{path.name}")

    def empty_trash(self) -> int:
        """Delete what was condemned. Result: bytes freed. Two callers at once share the work."""
        freed_bytes = _allocated_bytes(self.trash)
        for path in list(self.trash.iterdir()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return freed_bytes

    def strays(self, *, jobs: Collection[str]) -> list[Path]:
        """What is in `ingest` and belongs to none of the running `jobs`."""
        kept = {self.trash.name, *jobs}
        return [path for path in self.ingest.iterdir() if path.name not in kept]


def write_file(path: Path, content: bytes) -> None:
    """Write a new file with `content`, synced; a failure leaves no file."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(fd, rest) :]
        os.fsync(fd)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


def replace_file(path: Path, content: bytes) -> None:
    """Durably replace `path`: it has the old or the new content, never anything between."""
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    write_file(temporary, content)
    os.rename(temporary, path)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _allocated_bytes(directory: Path) -> int:
    """Bytes of disk below `directory`; a file with several names counts once."""
    seen: set[tuple[int, int]] = set()
    total = 0
    for folder, _, files in os.walk(directory):
        for name in files:
            try:
                found = os.lstat(os.path.join(folder, name))
            except FileNotFoundError:  # another caller empties the trash too
                continue
            if (found.st_dev, found.st_ino) not in seen:
                seen.add((found.st_dev, found.st_ino))
                total += found.st_blocks * 512
    return total
