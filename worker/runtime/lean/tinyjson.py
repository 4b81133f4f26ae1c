"""JSON through the C scanner and encoder alone.

`json` imports `re` and `enum`, about 1 MiB of private memory in each of the three small processes.
The accelerator module underneath does all the work; this file gives it the few settings it wants.
Refuses nothing `json` accepts, except that NaN is read as a float without complaint.
"""

from __future__ import annotations

import _json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _ScannerSettings:
    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = float
    parse_int = int
    parse_constant = float
    memo: dict[str, Any] = {}  # noqa: RUF012 - the C scanner wants the attribute, empty


def _refuse(value: object) -> object:
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


_scan = _json.make_scanner(_ScannerSettings())  # type: ignore[arg-type]
_encode = _json.make_encoder(
    None,  # no cycle markers
    _refuse,
    _json.encode_basestring,
    None,
    ":",
    ",",
    False,
    False,
    True,
)


def loads(text: str) -> Any:
    """Read one JSON value. Raises: ValueError when `text` is not JSON."""
    try:
        value, end = _scan(text, 0)
    except StopIteration:
        raise ValueError("not a JSON value") from None
    if text[end:].strip():
        raise ValueError("text after the JSON value")
    return value


def dumps(value: object) -> str:
    """Write one value on one line, non-ASCII as is."""
    return "".join(_encode(value, 0))
