"""A file for the owner's eyes alone, there whole under its name or not at all."""

from __future__ import annotations

import errno
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import BinaryIO, NoReturn

from shoal.errors import AlreadyExists, FailedPrecondition, ResourceExhausted, SwarmError


@contextmanager
def private_file(path: Path, *, replace: bool) -> Iterator[BinaryIO]:
    """A new file, 0600, that gets its name when the block ends well; it is durable then.

    A block that fails, Ctrl-C and SIGTERM leave nothing; what a kill leaves is called `.partial`.
    replace: an existing file is replaced, at the end. Raises: AlreadyExists; FailedPrecondition,
    ResourceExhausted for what the directory or the disk refuses.
    """
    if path.exists() and not replace:
        raise AlreadyExists(
            f"{path} exists already: choose another name, or overwrite with --force"
        )
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
    except OSError as error:
        raise _refusal(path, error) from error
    temporary = Path(name)
    try:
        with _ended_by_sigterm(), os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _refusal(path, error) from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exception, so that it is cleaned up after."""

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _refusal(path: Path, error: OSError) -> SwarmError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ResourceExhausted(f"{path}: {error.strerror}: free space and try again")
    return FailedPrecondition(f"{path}: {error.strerror}")
