"""Why a text is no JSON, in the words of Go's decoder, which clients' users know. Pure.

Only called once decoding has failed. Python's decoder finds the place; the words follow from it.
"""

from __future__ import annotations

import json

_LITERALS = ("true", "false", "null")
_QUOTED = {"'": r"'\''", '"': "'\"'", "\n": r"'\n'", "\t": r"'\t'", "\r": r"'\r'", "\\": r"'\\'"}


def explain(data: bytes) -> str:
    """What is wrong with `data`. "EOF" when there is nothing at all."""
    text = data.decode(errors="replace")
    if not text.strip(" \t\r\n"):
        return "EOF"
    try:
        json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        return _explain(text, error.msg, error.pos)
    except RecursionError:
        return "exceeded max depth"
    except _Constant as error:
        return str(error)
    return "invalid UTF-8"


class _Constant(Exception):
    """A number that Python reads and JSON does not know."""


def _refuse_constant(name: str) -> object:
    if name.startswith("-"):
        raise _Constant(f"invalid character '{name[1]}' in numeric literal")
    raise _Constant(f"invalid character '{name[0]}' looking for beginning of value")


def _explain(text: str, found: str, place: int) -> str:
    if found.startswith("Unterminated string"):
        return "unexpected EOF"
    if found.startswith("Invalid control character"):
        return f"invalid character {_quote(text, place)} in string literal"
    if found.startswith("Invalid \\"):
        return f"invalid character {_quote(text, place + 1)} in string escape code"
    place = _skip_space(text, place)
    if place >= len(text):
        return "unexpected EOF"
    if found.startswith("Extra data"):
        return f"invalid character {_quote(text, place)} after top-level value"
    if found.startswith("Expecting property name"):
        return f"invalid character {_quote(text, place)} looking for beginning of object key string"
    if found.startswith("Expecting ':'"):
        return f"invalid character {_quote(text, place)} after object key"
    if found.startswith("Expecting ','"):
        where = "array element" if _in_array(text, place) else "object key:value pair"
        return f"invalid character {_quote(text, place)} after {where}"
    return _explain_value(text, place)


def _explain_value(text: str, place: int) -> str:
    for literal in _LITERALS:
        if text[place] != literal[0]:
            continue
        for offset, expected in enumerate(literal):
            if place + offset >= len(text):
                return "unexpected EOF"
            if text[place + offset] != expected:
                bad = _quote(text, place + offset)
                return f"invalid character {bad} in literal {literal} (expecting '{expected}')"
    return f"invalid character {_quote(text, place)} looking for beginning of value"


def _quote(text: str, place: int) -> str:
    if place >= len(text):
        return "EOF"
    return _QUOTED.get(text[place], f"'{text[place]}'")


def _skip_space(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _in_array(text: str, place: int) -> bool:
    """Whether the innermost bracket that is open at `place` is an array's."""
    opened: list[str] = []
    in_string = escaped = False
    for character in text[:place]:
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "[{":
            opened.append(character)
        elif character in "]}" and opened:
            opened.pop()
    return bool(opened) and opened[-1] == "["
