"""Errors that cross a boundary of Shoal, each with a stable code.

One exception family for everything a caller may see. `code` maps to a gRPC status, an HTTP status
and a CLI exit code by one table (`shoal.wire.errors` for gRPC). Messages name the field and the
rule that was broken, and the remedy where there is one. `InvariantViolation` is not part of the
family: it is our own bug and is only caught at the top of a process.
"""

from __future__ import annotations

from enum import Enum
from typing import NoReturn

from typing_extensions import override


class Code(Enum):
    """Stable error codes; the value is used on the wire and in JSON output."""

    INVALID_ARGUMENT = "invalid_argument"
    NOT_FOUND = "not_found"
    ALREADY_EXISTS = "already_exists"
    NAME_CONFLICT = "name_conflict"
    SEQUENCE_CONFLICT = "sequence_conflict"
    FAILED_PRECONDITION = "failed_precondition"
    NOT_LEADER = "not_leader"
    NOT_BEGUN = "not_begun"
    UNAVAILABLE = "unavailable"
    UNREACHABLE = "unreachable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    RESOURCE_EXHAUSTED = "resource_exhausted"
    PERMISSION_DENIED = "permission_denied"
    UNAUTHENTICATED = "unauthenticated"
    UNIMPLEMENTED = "unimplemented"
    INTERNAL = "internal"


class SwarmError(Exception):
    """An error with a code, a message for people, and whether trying again may help."""

    code: Code = Code.INTERNAL
    retryable: bool = False

    def __init__(self, message: str, **context: object) -> None:
        super().__init__(message)
        self.message = message
        self.context = context

    @override
    def __str__(self) -> str:
        return self.message


class InvalidArgument(SwarmError):
    """The caller sent something that breaks a rule; the message names the field and the rule."""

    code = Code.INVALID_ARGUMENT


class NotFound(SwarmError):
    """The named object does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(SwarmError):
    """An object with that id or address is already there."""

    code = Code.ALREADY_EXISTS


class NameConflict(SwarmError):
    """Another object of the same kind has that name."""

    code = Code.NAME_CONFLICT


class SequenceConflict(SwarmError):
    """The object changed since the caller read it; read again and retry."""

    code = Code.SEQUENCE_CONFLICT
    retryable = True


class FailedPrecondition(SwarmError):
    """The request is well formed, but the cluster or node is not in a state that allows it."""

    code = Code.FAILED_PRECONDITION


class NotLeader(SwarmError):
    """This manager is not the leader; `context['leader_address']` names it when known."""

    code = Code.NOT_LEADER
    retryable = True


class NotBegun(NotLeader):
    """This manager does not lead and did not begin the call: it can be made again elsewhere."""

    code = Code.NOT_BEGUN


class Unavailable(SwarmError):
    """The other side cannot be reached or is not ready; trying again may help."""

    code = Code.UNAVAILABLE
    retryable = True


class Unreachable(Unavailable):
    """Nobody was found where the caller says that it can be reached."""

    code = Code.UNREACHABLE


class DeadlineExceeded(SwarmError):
    """No answer within the deadline; the operation may or may not have happened."""

    code = Code.DEADLINE_EXCEEDED
    retryable = True


class ResourceExhausted(SwarmError):
    """A bounded resource (disk, addresses, ports, queue, message size) is used up."""

    code = Code.RESOURCE_EXHAUSTED


class PermissionDenied(SwarmError):
    """The caller is known but may not do this."""

    code = Code.PERMISSION_DENIED


class Unauthenticated(SwarmError):
    """The caller did not prove who it is."""

    code = Code.UNAUTHENTICATED


class Unimplemented(SwarmError):
    """This version or this machine cannot do it; the message says what is missing."""

    code = Code.UNIMPLEMENTED


class Internal(SwarmError):
    """Our fault."""

    code = Code.INTERNAL


ERROR_BY_CODE: dict[Code, type[SwarmError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument, NotFound, AlreadyExists, NameConflict, SequenceConflict,
        FailedPrecondition, NotLeader, NotBegun, Unavailable, Unreachable, DeadlineExceeded,
        ResourceExhausted, PermissionDenied, Unauthenticated, Unimplemented, Internal,
    )
}  # fmt: skip


class InvariantViolation(Exception):
    """Something that cannot happen happened. Crash: a wrong state must not be served."""


def invariant(condition: object, message: str, **context: object) -> None:
    """Raise InvariantViolation unless `condition` is true. Unlike assert, never compiled away."""
    if not condition:
        violated(message, **context)


def violated(message: str, **context: object) -> NoReturn:
    """Raise InvariantViolation with the context in its text."""
    details = " ".join(f"{key}={value!r}" for key, value in context.items())
    raise InvariantViolation(f"{message} {details}".rstrip())
