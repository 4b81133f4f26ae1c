"""The key sequence that ends an attachment, looked for in a terminal's input. Pure.

Clients that do not look themselves (docker-py) leave it to the server. Keys of a sequence that
turned out to be none are passed on late, and none is lost.
"""

from __future__ import annotations

from shoal.errors import InvalidArgument

DEFAULT = "ctrl-p,ctrl-q"
_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse_keys(text: str) -> bytes:
    """`ctrl-p,ctrl-q` or `a,b` as bytes; empty text is the default. Raises: InvalidArgument."""
    keys = bytearray()
    for part in (text or DEFAULT).split(","):
        if len(part) == 1 and part.isascii():
            keys.append(ord(part))
        elif part.startswith("ctrl-") and len(part) == 6 and _control(part[5]) is not None:
            keys.append(_control(part[5]) or 0)
        else:
            raise InvalidArgument(f"Invalid escape keys ({text}) provided")
    return bytes(keys)


def _control(letter: str) -> int | None:
    if "a" <= letter <= "z":
        return ord(letter) - ord("a") + 1
    return _CONTROL.get(letter)


class DetachWatch:
    """Follows one input stream."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Result: what to pass on, and whether the sequence is complete. After True: no more."""
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._held]:
                self._held += 1
                if self._held == len(self._keys):
                    return bytes(passed), True
                continue
            passed += self._keys[: self._held]
            self._held = 0
            if byte == self._keys[0]:
                self._held = 1
            else:
                passed.append(byte)
        return bytes(passed), False
