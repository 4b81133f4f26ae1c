"""What managers refuse, in the words that Docker's clients know. Pure.

Docker looks names up itself and tells in plain words what it does not find; all that its managers
refuse it passes on as the gRPC error that it got.
"""

from __future__ import annotations

from engine.http.errors import Refused, status_of
from shoal.errors import (
    AlreadyExists,
    FailedPrecondition,
    NameConflict,
    NotFound,
    SequenceConflict,
    SwarmError,
)
from shoal.wire.errors import STATUS_BY_CODE

_AMBIGUOUS = "matches found)"
_NO_PREVIOUS = "does not have a previous spec"


def rpc_text(error: SwarmError) -> str:
    """The error as gRPC's clients in Go print it."""
    code = STATUS_BY_CODE[error.code].name.title().replace("_", "")
    return f"rpc error: code = {code} desc = {error.message}"


def of_service(error: SwarmError, name: str, service_id: str) -> SwarmError:
    """What a manager said of a service, where Docker has other words for it."""
    if isinstance(error, NameConflict):
        return AlreadyExists(
            f"name conflicts with an existing object: service {name} already exists"
        )
    if isinstance(error, FailedPrecondition) and error.message.endswith(_NO_PREVIOUS):
        return FailedPrecondition(f"service {service_id} {_NO_PREVIOUS}")
    return error


def told(error: SwarmError) -> SwarmError:
    """What a manager said, with Docker's status and in its words."""
    if isinstance(error, Refused | NotFound):
        return error
    if isinstance(error, SequenceConflict):
        return Refused(500, "rpc error: code = Unknown desc = update out of sequence")
    if _AMBIGUOUS in error.message:
        return Refused(400, error.message.partition(_AMBIGUOUS)[0] + _AMBIGUOUS)
    status = 400 if isinstance(error, FailedPrecondition) else status_of(error)
    return Refused(status, rpc_text(error))
