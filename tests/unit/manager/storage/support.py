"""A disk that fails on demand (real operations underneath) and small builders."""

from __future__ import annotations

import errno
from pathlib import Path

from typing_extensions import override

from manager.storage.entries import Entry
from manager.storage.files import FileOps
from manager.storage.frames import WalIdentity

IDENTITY = WalIdentity("shoal0cluster0for0tests00", 7)


class FaultyFiles(FileOps):
    """Real files; `space_bytes` bounds what may still be written, `fail` names calls that raise."""

    def __init__(self, *, space_bytes: int | None = None) -> None:
        self.space_bytes = space_bytes
        self.fail: dict[str, int] = {}
        self.calls: list[str] = []
        self.open_fds: set[int] = set()

    def _enter(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            raise OSError(self.fail[name], errno.errorcode[self.fail[name]])

    def _opened(self, fd: int) -> int:
        self.open_fds.add(fd)
        return fd

    @override
    def open_dir(self, path: Path) -> int:
        return self._opened(super().open_dir(path))

    @override
    def create(self, path: Path) -> int:
        self._enter("create")
        return self._opened(super().create(path))

    @override
    def open(self, path: Path) -> int:
        self._enter("open")
        return self._opened(super().open(path))

    @override
    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        self._enter("pwrite")
        if self.space_bytes is not None:
            if self.space_bytes == 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            data = memoryview(data)[: self.space_bytes]
            self.space_bytes -= len(data)
        return super().pwrite(fd, data, offset)

    @override
    def fdatasync(self, fd: int) -> None:
        self._enter("fdatasync")
        super().fdatasync(fd)

    @override
    def fsync(self, fd: int) -> None:
        self._enter("fsync")
        super().fsync(fd)

    @override
    def rename(self, source: Path, target: Path) -> None:
        self._enter("rename")
        super().rename(source, target)

    @override
    def unlink(self, path: Path) -> None:
        self._enter("unlink")
        super().unlink(path)

    @override
    def close(self, fd: int) -> None:
        self.open_fds.discard(fd)
        super().close(fd)


class Crash(BaseException):
    """The process ends here."""


class CrashingFiles(FileOps):
    """Ends the process at the `at`-th call, before or in the middle of it."""

    def __init__(self, at: int) -> None:
        self.left = at

    def _step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise Crash

    @override
    def create(self, path: Path) -> int:
        self._step()
        return super().create(path)

    @override
    def open(self, path: Path) -> int:
        self._step()
        return super().open(path)

    @override
    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        if self.left <= 0:
            super().pwrite(fd, memoryview(data)[: len(data) // 2], offset)
        self._step()
        return super().pwrite(fd, data, offset)

    @override
    def fdatasync(self, fd: int) -> None:
        self._step()
        super().fdatasync(fd)

    @override
    def fsync(self, fd: int) -> None:
        self._step()
        super().fsync(fd)

    @override
    def rename(self, source: Path, target: Path) -> None:
        self._step()
        super().rename(source, target)

    @override
    def unlink(self, path: Path) -> None:
        self._step()
        super().unlink(path)


def entries(first: int, last: int, *, term: int = 1, size: int = 40) -> list[Entry]:
    """Entries `first` to `last`; their data differs by index and term and has no zero byte."""
    return [
        Entry(index, term, 1, (f"{term}/{index}:" + "x" * size)[:size].encode())
        for index in range(first, last + 1)
    ]
