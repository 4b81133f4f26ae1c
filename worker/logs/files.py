"""Names of log files, and how old ones are compressed. Standard library only: the logger's, too."""

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
        try:
            os.unlink(path_of(directory, sequence, suffix))
        except FileNotFoundError:
            continue


def compress_apart(directory: str, link_fd: int) -> None:
    """Compress every file but the newest, in a process of its own that nobody waits for.

    Each becomes compressed by one rename; two processes at the same file do no harm.
    """
    todo = [
        sequence
        for sequence in sequences(directory)[:-1]
        if os.path.exists(path_of(directory, sequence))
    ]
    if not todo or os.fork():
        return
    code = 1
    try:
        os.close(link_fd)  # whose end tells the keeper that the logger has gone
        os.nice(10)
        for sequence in todo:
            _compress(directory, sequence)
        code = 0
    finally:
        os._exit(code)


def _compress(directory: str, sequence: int) -> None:
    import zlib  # here, not in the logger: it costs memory there for good

    plain = path_of(directory, sequence)
    fresh = f"{directory}/logs/.{sequence}.{os.getpid()}.new"
    source = os.open(plain, os.O_RDONLY)
    target = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
    try:
        packer = zlib.compressobj(wbits=_GZIP)
        while chunk := os.read(source, _CHUNK_BYTES):
            _write(target, packer.compress(chunk))
        _write(target, packer.flush())
        os.fsync(target)
        os.rename(fresh, path_of(directory, sequence, COMPRESSED))
        os.unlink(plain)
    except OSError:  # removed meanwhile, or the disk is full: it stays as it is
        os.unlink(fresh)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]
