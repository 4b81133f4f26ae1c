"""Names of log files, how old ones are compressed, the logger's own log.

Standard library only: it is the logger's, too.
"""

from __future__ import annotations

import os

PLAIN, COMPRESSED = ".json", ".json.gz"
_CHUNK_BYTES = 1 << 16
_GZIP = 31  # zlib's word for a gzip header around it


def sequence_of(name: str) -> int:
    """The number of a log file, or 0 for what is none."""
    stem = name.removesuffix(".gz").removesuffix(PLAIN)
    return int(stem) if stem != name and stem.isdigit() else 0


def path_of(directory: str, sequence: int, suffix: str = PLAIN) -> str:
    """Where a log file is. directory: the container's."""
    return f"{directory}/logs/{sequence:06d}{suffix}"


def sequences(directory: str) -> list[int]:
    """Numbers of all files of a container's log, ascending. Raises: FileNotFoundError."""
    return sorted({sequence_of(name) for name in os.listdir(f"{directory}/logs")} - {0})


def discard(directory: str, sequence: int) -> None:
    """Remove a log file in either form."""
    for suffix in (PLAIN, COMPRESSED):
        _unlink(path_of(directory, sequence, suffix))


def complain(message: str) -> None:
    """One line into the runtime's log, if it takes one: it is on the disk that may be full."""
    try:  # noqa: SIM105 - contextlib is too dear for the logger
        os.write(2, f"{message}\n".encode())
    except OSError:
        pass


def _unlink(path: str) -> bool:
    """Whether it was there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True


def compress_apart(directory: str, link_fd: int) -> None:
    """Compress every file but the newest, in a process of its own that nobody waits for.

    One process works at a time and one more waits, which looks again when its turn comes: so no
    file is missed, and a file that is gone at the end was removed, never compressed by another.
    """
    if not _plain(directory) or os.fork():
        return
    code = 1
    try:
        os.close(link_fd)  # whose end tells the keeper that the logger has gone
        os.nice(10)
        _compress_all(directory)
        code = 0
    finally:
        os._exit(code)


def _plain(directory: str) -> list[int]:
    found = sequences(directory)[:-1]
    return [sequence for sequence in found if os.path.exists(path_of(directory, sequence))]


def _compress_all(directory: str) -> None:
    import fcntl

    waiting = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    working = os.open(f"{directory}/logs", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:  # whoever waits will see what there is to do
        return
    fcntl.flock(working, fcntl.LOCK_EX)
    os.close(waiting)
    for sequence in _plain(directory):
        _compress(directory, sequence)


def _compress(directory: str, sequence: int) -> None:
    import zlib  # here, not in the logger: it costs memory there for good

    plain, packed = path_of(directory, sequence), path_of(directory, sequence, COMPRESSED)
    fresh = f"{directory}/logs/.{sequence}.{os.getpid()}.new"
    try:
        source = os.open(plain, os.O_RDONLY)
    except FileNotFoundError:
        return
    target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        packer = zlib.compressobj(wbits=_GZIP)
        while chunk := os.read(source, _CHUNK_BYTES):
            _write(target, packer.compress(chunk))
        _write(target, packer.flush())
        os.fsync(target)
        os.rename(fresh, packed)
        if not _unlink(plain):  # it was removed meanwhile
            _unlink(packed)
    except OSError:  # the disk is full: it stays as it is
        _unlink(fresh)
    finally:
        os.close(source)
        os.close(target)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
