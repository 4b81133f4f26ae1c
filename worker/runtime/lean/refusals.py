"""Requests to the supervisor that cannot be carried out."""

from __future__ import annotations

import errno


class Refused(Exception):
    """A request that cannot be carried out; `code` is a `shoal.errors.Code` value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def refusal_of(error: Exception) -> Refused:
    """What an error that nobody foresaw is to who asked; only a full disk is not our bug."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = "no space left on device: enlarge the disk of the node's state"
        return Refused("resource_exhausted", full)
    return Refused("internal", f"{type(error).__name__}: {error}")
