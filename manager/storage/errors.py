"""What storage refuses, by whose fault: the disk (StorageFailed) or the bytes (Corrupt...)."""

from __future__ import annotations

import errno

from shoal.errors import FailedPrecondition, Internal, ResourceExhausted, SwarmError

REJOIN = (
    "keep a copy of the directory, then remove this manager from the cluster, wipe its state"
    " directory and join it again (a single manager: restore a backup)"
)
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class StorageFailed(Internal):
    """The disk failed a write or a sync; what is durable is unknown, so the process must end.

    A sync is never retried: the kernel may have dropped the dirty pages and report success.
    """


class CorruptLog(FailedPrecondition):
    """The log is damaged where no crash can damage it; `file` and `offset` are in the context."""


class CorruptSnapshot(FailedPrecondition):
    """A snapshot file does not verify, or none is left that does."""


def corrupt_log(path: str, offset: int, reason: str) -> CorruptLog:
    """A CorruptLog naming file, offset, reason and remedy."""
    return CorruptLog(
        f"{path}: offset {offset}: {reason}; refusing to start: {REJOIN}",
        file=path,
        offset=offset,
    )


def disk_error(doing: str, path: str, error: OSError) -> SwarmError:
    """ResourceExhausted when space ran out, StorageFailed for everything else."""
    reason = error.strerror or str(error)
    if is_no_space(error):
        return ResourceExhausted(
            f"{doing} {path}: {reason}; nothing was acknowledged: free space and try again",
            file=path,
        )
    return StorageFailed(f"{doing} {path}: {reason}; check the disk and restart", file=path)


def is_no_space(error: OSError) -> bool:
    """Whether the write was refused for lack of space, quota or file size limit."""
    return error.errno in _NO_SPACE
