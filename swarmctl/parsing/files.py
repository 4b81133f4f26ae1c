"""`--secret` and `--config`: a name, or `source=,target=,uid=,gid=,mode=`, as docker reads them."""

from __future__ import annotations

from collections.abc import Callable

from shoal.errors import InvalidArgument
from shoal.model.files import FILE_MODE
from shoal.model.row import Row
from shoal.model.types import FileReference
from swarmctl.parsing.fields import required, split_fields

_ALIASES = {"src": "source"}
_Setter = Callable[[FileReference, str], FileReference]


def parse_file(text: str) -> FileReference:
    """A reference to a secret or config; its target is its name unless one is given."""
    reference = FileReference(uid="0", gid="0", mode=FILE_MODE)
    if "=" not in text:
        name = required(text, key="source")
        return reference.replaced(name=name, target=name)
    for key, value in split_fields(text):
        setter = _SETTERS.get(_ALIASES.get(key, key))
        if setter is None:
            raise InvalidArgument(
                f"{text!r}: unknown key {key!r}: use source, target, uid, gid or mode"
            )
        reference = setter(reference, required(value, key=key))
    if not reference.name:
        raise InvalidArgument(f"{text!r}: source is required")
    return reference.replaced(target=reference.target or reference.name)


class Rotation(Row, frozen=True):
    """How tasks get other contents: as new tasks, or below running ones; and a signal then."""

    live: bool = False
    signal: str = ""


def parse_rotation(text: str) -> Rotation:
    """`restart`, `live` or `signal=NAME`, which is live and tells the program."""
    key, _, name = text.partition("=")
    if text in {"restart", "live"}:
        return Rotation(live=text == "live")
    if key != "signal" or not name:
        raise InvalidArgument(f"{text!r}: use restart, live or signal=SIGHUP")
    upper = name.upper()
    return Rotation(live=True, signal=upper if upper.startswith("SIG") else f"SIG{upper}")


def parse_mode(text: str) -> int:
    """Permissions as Go reads a number: octal after a 0, as in 0440; decimal otherwise."""
    try:
        mode = int(text, 8 if text.startswith("0") and text.isdigit() else 0)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise InvalidArgument(f"mode={text}: write it in octal with a leading 0, such as 0440")
    return mode


_SETTERS: dict[str, _Setter] = {
    "source": lambda reference, value: reference.replaced(name=value),
    "target": lambda reference, value: reference.replaced(target=value),
    "uid": lambda reference, value: reference.replaced(uid=value),
    "gid": lambda reference, value: reference.replaced(gid=value),
    "mode": lambda reference, value: reference.replaced(mode=parse_mode(value)),
}
