"""Exit codes: one table from `shoal.errors.Code`, and the click errors that carry them."""

from __future__ import annotations

import click

from shoal.errors import Code, SwarmError

OK = 0
FAILURE = 1
USAGE = 2
NOT_FOUND = 3
CONFLICT = 4
UNAVAILABLE = 5
REFUSED = 6
DENIED = 7
EXHAUSTED = 8
DEADLINE = 9
UNSUPPORTED = 10
NO_CHANGE = 11
NOT_RUN = 125
INTERRUPTED = 130

EXIT_BY_CODE: dict[Code, int] = {
    Code.INVALID_ARGUMENT: USAGE,
    Code.NOT_FOUND: NOT_FOUND,
    Code.ALREADY_EXISTS: CONFLICT,
    Code.NAME_CONFLICT: CONFLICT,
    Code.SEQUENCE_CONFLICT: CONFLICT,
    Code.FAILED_PRECONDITION: REFUSED,
    Code.NOT_LEADER: UNAVAILABLE,
    Code.NOT_BEGUN: UNAVAILABLE,
    Code.UNAVAILABLE: UNAVAILABLE,
    Code.UNREACHABLE: UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: DEADLINE,
    Code.RESOURCE_EXHAUSTED: EXHAUSTED,
    Code.PERMISSION_DENIED: DENIED,
    Code.UNAUTHENTICATED: DENIED,
    Code.UNIMPLEMENTED: UNSUPPORTED,
    Code.INTERNAL: FAILURE,
}

MEANINGS: dict[int, str] = {
    OK: "done",
    FAILURE: "failed; also: the service did not converge, or by `--plan` would not",
    USAGE: "wrong usage, or a value that breaks a rule",
    NOT_FOUND: "no such object",
    CONFLICT: "the name is taken, or the object changed meanwhile",
    UNAVAILABLE: "the daemon or the cluster's leader cannot be reached",
    REFUSED: "not possible in the present state of the node or cluster",
    DENIED: "not allowed",
    EXHAUSTED: "a resource is used up",
    DEADLINE: "no answer in time; the change may or may not have happened",
    UNSUPPORTED: "this version or machine cannot do it",
    NO_CHANGE: "`--plan`: nothing would change",
    NOT_RUN: "the container of `service run` could not be run; else its own exit code",
    INTERRUPTED: "interrupted by Ctrl-C",
}


class CommandFailed(click.ClickException):
    """Ends the command: `Error: message` on stderr, and an exit code."""

    def __init__(self, message: str, exit_code: int = FAILURE) -> None:
        super().__init__(message)
        self.exit_code: int = exit_code  # type: ignore[misc]  # click reads it on the instance too


def failure_of(error: SwarmError) -> CommandFailed:
    """The end of the command for an error of the family."""
    return CommandFailed(error.message, EXIT_BY_CODE[error.code])


def epilog() -> str:
    """The table for the end of `--help`."""
    lines = "\n".join(f"  {code:>3}  {meaning}" for code, meaning in MEANINGS.items())
    return f"\b\nExit codes:\n{lines}"
