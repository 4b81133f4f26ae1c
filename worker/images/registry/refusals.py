"""What a registry says when it says no: read from its answer, told in its own words. Pure.

An answer is worth another attempt when the registry is busy or broken (429, 5xx), never when it
has judged the request. Source: distribution-spec, error codes.
"""

from __future__ import annotations

import msgspec

from shoal.errors import Code, NotFound, SwarmError

ATTEMPTS_MAX = 5
_GROWTH_MAX = 16.0
RETRY_AFTER_MAX_S = 30.0
_TEXT_MAX = 1000
_BUSY = 429
_UNSAID = {
    401: ("UNAUTHORIZED", "unauthorized: authentication required"),
    403: ("DENIED", "denied: requested access to the resource is denied"),
}


class Refusal(SwarmError):
    """A registry's answer. kind: its error code, like MANIFEST_UNKNOWN; "" if it gave none."""

    code = Code.UNAVAILABLE

    def __init__(self, message: str, status: int, kind: str = "") -> None:
        super().__init__(message[:_TEXT_MAX])
        self.status = status
        self.kind = kind
        self.retryable = status == _BUSY or status >= 500


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


def read_refusal(method: str, url: str, status: int, reason: str, body: bytes) -> Refusal:
    """An answer that is no success, as an error."""
    try:
        found = msgspec.json.decode(body, type=_Errors).errors or []
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = []
    if not found and status in _UNSAID:  # answers to HEAD have no body
        return Refusal(_UNSAID[status][1], status, _UNSAID[status][0])
    if not found:
        what = f'{method} "{url}"' if method != "GET" else f'Get "{url}"'
        return Refusal(f"{what}: received unexpected HTTP status: {status} {reason}", status)
    words = "; ".join(_worded(one) for one in found)
    return Refusal(words, status, found[0].code)


def _worded(error: _Error) -> str:
    code = error.code.lower().replace("_", " ")
    return f"{code}: {error.message}" if error.message else code


def of_pull(refusal: Refusal, name: str, familiar: str) -> SwarmError:
    """What a pull is refused with. name: without tag. Source: moby distribution/errors.go."""
    match refusal.kind:
        case "MANIFEST_UNKNOWN":
            return NotFound(f"manifest for {familiar} not found: {refusal.message}")
        case "NAME_UNKNOWN":
            return NotFound(f"repository {name} not found: {refusal.message}")
        case "DENIED":
            return NotFound(
                f"pull access denied for {name}, repository does not exist or may require"
                f" 'docker login': {refusal.message}"
            )
        case _:
            pass
    if refusal.status == 404:
        return NotFound(f"manifest for {familiar} not found: {refusal.message}")
    return refusal


def pause_s(attempt: int, first_s: float, retry_after: str, spread: float) -> float:
    """How long to wait before attempt number `attempt` + 1, counted from 1: longer each time.

    retry_after: the registry's wish in seconds, if any. spread: 0 to 1, so that many nodes do not
    come back at once.
    """
    wished = min(float(retry_after), RETRY_AFTER_MAX_S) if retry_after.isdecimal() else 0.0
    growing = first_s * min(2.0 ** (attempt - 1), _GROWTH_MAX)
    return max(wished, growing) * (1.0 + spread * 0.25)
