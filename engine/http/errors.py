"""From errors to HTTP statuses and bodies: the one table of the engine.

A part raises the `SwarmError` that says what is wrong; where Docker answers with another status
than the table's, it raises `Refused`. Clients decide by status and by text, so both are Docker's.
"""

from __future__ import annotations

import errno

import msgspec

from shoal.errors import Code, ResourceExhausted, SwarmError

_STATUSES = {
    Code.INVALID_ARGUMENT: 400,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.NAME_CONFLICT: 409,
    Code.SEQUENCE_CONFLICT: 409,
    Code.FAILED_PRECONDITION: 409,
    Code.NOT_LEADER: 503,
    Code.NOT_BEGUN: 503,
    Code.UNAVAILABLE: 503,
    Code.UNREACHABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
    Code.RESOURCE_EXHAUSTED: 500,
    Code.PERMISSION_DENIED: 403,
    Code.UNAUTHENTICATED: 401,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
}
INTERNAL_TEXT = "internal error: the log of the node's worker process has its story"
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))


class Refused(SwarmError):
    """An answer whose status Docker fixes; 304 means: nothing to do."""

    code = Code.FAILED_PRECONDITION

    def __init__(self, status: int, message: str = "") -> None:
        super().__init__(message)
        self.status = status


def told_by_the_disk(error: OSError) -> SwarmError | None:
    """What a full disk is to the caller; None: another error, which is a bug here."""
    if error.errno not in _FULL:
        return None
    return ResourceExhausted(
        f"{(error.strerror or '').lower()}: remove containers, images or volumes, or enlarge the"
        " disk of the node's state"
    )


def status_of(error: SwarmError) -> int:
    """The HTTP status of an error. A code that is not in the table: 503 if trying again helps."""
    if isinstance(error, Refused):
        return error.status
    return _STATUSES.get(error.code, 503 if error.retryable else 500)


def body_of(message: str) -> bytes:
    """The body of every error."""
    return msgspec.json.encode({"message": message}) + b"\n"


def stream_error(message: str, code: int = 0) -> dict[str, object]:
    """An error inside a progress stream, whose status has been sent already."""
    detail: dict[str, object] = {"code": code} if code else {}
    return {"errorDetail": {**detail, "message": message}, "error": message}
