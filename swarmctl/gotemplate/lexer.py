"""Template text into pieces: literal text and the tokens of each `{{action}}`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto

import msgspec

from shoal.errors import InvalidArgument

_OPEN = "{{"
_CLOSE = "}}"
_BLANKS = " \t\r\n"
_COMMENT = re.compile(r"\{\{(-\s)?\s*/\*.*?\*/\s*?(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""
    (?P<blank>\s+)
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<raw>`[^`]*`)
  | (?P<character>'(?:[^'\\\n]|\\.)+')
  | (?P<number>[+-]?(?:0[xX][0-9a-fA-F_]+|0[oO]?[0-7_]+(?![\d.])|0[bB][01_]+
        |\d[\d_]*(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+))
  | (?P<declare>:=)
  | (?P<assign>=)
  | (?P<pipe>\|)
  | (?P<open>\()
  | (?P<close>\))
  | (?P<comma>,)
  | (?P<variable>\$\w*)
  | (?P<field>\.\w+)
  | (?P<dot>\.)
  | (?P<word>\w+)
    """,
    re.VERBOSE,
)


class Kind(Enum):
    """Kinds of tokens."""

    BLANK = auto()
    STRING = auto()
    RAW = auto()
    CHARACTER = auto()
    NUMBER = auto()
    DECLARE = auto()
    ASSIGN = auto()
    PIPE = auto()
    OPEN = auto()
    CLOSE = auto()
    COMMA = auto()
    VARIABLE = auto()
    FIELD = auto()
    DOT = auto()
    WORD = auto()


class Token(msgspec.Struct, frozen=True):
    """A token of an action; `position` counts characters from the start of the template."""

    kind: Kind
    text: str
    position: int


class Literal(msgspec.Struct, frozen=True):
    """Text outside of actions."""

    text: str


class Action(msgspec.Struct, frozen=True):
    """The tokens between `{{` and `}}`, blanks at the ends left out."""

    tokens: tuple[Token, ...]
    position: int


def split(text: str) -> Iterator[Literal | Action]:
    """The pieces of a template in order; empty text is left out. Raises InvalidArgument."""
    position = 0
    trim_next = False
    while position < len(text):
        start = text.find(_OPEN, position)
        end = len(text) if start < 0 else start
        piece = text[position:end].lstrip(_BLANKS) if trim_next else text[position:end]
        trims_before = start >= 0 and _has_opening_trim(text, start)
        piece = piece.rstrip(_BLANKS) if trims_before else piece
        if piece:
            yield Literal(piece)
        if start < 0:
            return
        comment = _COMMENT.match(text, start)
        if comment is not None:
            position, trim_next = comment.end(), comment[2] is not None
            continue
        body_start = start + (3 if trims_before else 2)
        tokens, position, trim_next = _action(text, body_start)
        yield Action(tokens, start)


def _has_opening_trim(text: str, start: int) -> bool:
    return text.startswith("-", start + 2) and text[start + 3 : start + 4] in tuple(_BLANKS)


def _action(text: str, position: int) -> tuple[tuple[Token, ...], int, bool]:
    tokens: list[Token] = []
    while True:
        if text.startswith(_CLOSE, position):
            return _stripped(tokens), position + 2, False
        if tokens and tokens[-1].kind is Kind.BLANK and text.startswith("-" + _CLOSE, position):
            return _stripped(tokens), position + 3, True
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            rest = text[position : position + 10]
            problem = f"unexpected {rest!r}" if rest else "an action is not closed with }}"
            raise InvalidArgument(f"--format, character {position}: {problem}")
        tokens.append(Token(Kind[match.lastgroup.upper()], match[0], position))
        position = match.end()


def _stripped(tokens: list[Token]) -> tuple[Token, ...]:
    first = 1 if tokens and tokens[0].kind is Kind.BLANK else 0
    last = len(tokens) - (1 if len(tokens) > first and tokens[-1].kind is Kind.BLANK else 0)
    return tuple(tokens[first:last])
