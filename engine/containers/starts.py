"""Why a container could not be started, in Docker's words. Pure.

Clients decide by the text: `not found` makes `docker run` exit with 127, `permission denied` and
`is a directory` with 126, all else with 125; the same codes are kept as the container's own.
"""

from __future__ import annotations

from engine.containers.records import Record
from engine.http.errors import Refused
from shoal.errors import FailedPrecondition, SwarmError

NOT_FOUND, NOT_EXECUTABLE, OTHER = 127, 126, 128
_SHIM = (
    "failed to create shim task: OCI runtime create failed: runc create failed: unable to start"
    " container process: "
)
_MISSING = ("executable file not found", "no such file or directory")
_FORBIDDEN = ("permission denied", "is a directory")


def explain(error: SwarmError, record: Record) -> SwarmError:
    """What the client is told."""
    text = error.message
    if isinstance(error, Refused) or not isinstance(error, FailedPrecondition):
        return error
    if text.startswith("Bind for "):
        return Refused(
            500,
            "driver failed programming external connectivity on endpoint"
            f" {record.name} ({record.id}): {text}",
        )
    status = 400 if exit_code(error) != OTHER else 500
    return Refused(status, f"{_SHIM}{text}: unknown")


def exit_code(error: SwarmError) -> int:
    """What `inspect` shows as the exit code of the failed start."""
    text = error.message.lower()
    if any(words in text for words in _MISSING):
        return NOT_FOUND
    return NOT_EXECUTABLE if any(words in text for words in _FORBIDDEN) else OTHER
