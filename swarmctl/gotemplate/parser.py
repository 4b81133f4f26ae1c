"""Tokens into a tree: recursive descent, one token of look-ahead.

Blanks matter in one place: `.A.B` is one operand with two fields, `.A .B` two operands.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from shoal.errors import InvalidArgument
from swarmctl.gotemplate import nodes
from swarmctl.gotemplate.functions import FUNCTIONS
from swarmctl.gotemplate.lexer import Action, Kind, Literal, Token, split

DEPTH_MAX = 64

_REFUSED = ("define", "template", "block")
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "nil": None}
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|x[0-9a-fA-F]{2}|[0-7]{3}|.)", re.DOTALL)
_ESCAPES = {
    "n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b",
    "f": "\f", "v": "\v",
}  # fmt: skip


def parse(text: str) -> nodes.Tree:
    """The tree of a template. Raises InvalidArgument with the position of the mistake."""
    body = _Body(list(split(text)))
    tree, end = body.tree(depth=0)
    if end is not None:
        _fail(end, f"unexpected {_spelled(end)}: nothing is open")
    return tree


class _Body:
    """The pieces of the template, and how far they have been read."""

    def __init__(self, pieces: list[Literal | Action]) -> None:
        self._pieces = pieces
        self._next = 0

    def tree(self, depth: int) -> tuple[nodes.Tree, Action | None]:
        """Nodes up to the end or to an `else` or `end`, which is returned."""
        if depth > DEPTH_MAX:
            raise InvalidArgument(f"--format: more than {DEPTH_MAX} levels of blocks")
        result: list[nodes.Node] = []
        while self._next < len(self._pieces):
            piece = self._pieces[self._next]
            self._next += 1
            if isinstance(piece, Literal):
                result.append(nodes.Text(piece.text))
                continue
            keyword = _keyword(piece)
            if keyword in ("else", "end"):
                return nodes.Tree(tuple(result)), piece
            result.append(self._node(piece, keyword, depth))
        return nodes.Tree(tuple(result)), None

    def _node(self, action: Action, keyword: str, depth: int) -> nodes.Node:
        if keyword in _REFUSED:
            _fail(action, f"{keyword} is not supported")
        if keyword in ("break", "continue"):
            return nodes.Leave(again=keyword == "continue")
        if keyword in ("if", "with", "range"):
            return self._block(action, keyword, _Tokens(action, skip=1), depth)
        tokens = _Tokens(action)
        head = tokens.assignment()
        node = head if isinstance(head, nodes.Assign) else nodes.Output(head)
        tokens.finish()
        return node

    def _block(
        self, action: Action, keyword: str, tokens: _Tokens, depth: int
    ) -> nodes.If | nodes.With | nodes.Range:
        loop = tokens.loop() if keyword == "range" else None
        condition = tokens.assignment() if loop is None else loop[2]
        tokens.finish()
        body, end = self.tree(depth + 1)
        otherwise = self._otherwise(action, end, depth)
        if loop is not None:
            return nodes.Range(loop[0], loop[1], loop[2], body, otherwise)
        kind = nodes.If if keyword == "if" else nodes.With
        return kind(condition, body, otherwise)

    def _otherwise(self, action: Action, end: Action | None, depth: int) -> nodes.Tree:
        """The part after `else`; an `else if` is a block of its own with the same end."""
        if end is None:
            _fail(action, f"{_spelled(action)} has no end")
        if _keyword(end) == "end":
            return nodes.Tree()
        chained = end.tokens[2] if len(end.tokens) > 2 else None
        if chained is not None:
            if chained.text not in ("if", "with"):
                _fail(end, f"unexpected {chained.text!r} after else")
            block = self._block(end, chained.text, _Tokens(end, skip=3), depth + 1)
            return nodes.Tree((block,))
        tree, last = self.tree(depth + 1)
        if last is None or _keyword(last) != "end":
            _fail(end, "else has no end")
        return tree


class _Tokens:
    """The tokens of one action, and how far they have been read."""

    def __init__(self, action: Action, *, skip: int = 0) -> None:
        self._action = action
        self._tokens = action.tokens
        self._next = skip
        self._depth = 0

    def finish(self) -> None:
        """Refuse tokens that are left over."""
        self._blank()
        if self._peek() is not None:
            self._unexpected()

    def loop(self) -> tuple[str, str, nodes.Pipeline]:
        """Key variable, value variable and pipeline of a range; absent variables are empty."""
        self._blank()
        start = self._next
        names: list[str] = []
        while (token := self._peek()) is not None and token.kind is Kind.VARIABLE:
            names.append(token.text)
            self._next += 1
            self._blank()
            if not self._take(Kind.COMMA):
                break
            self._blank()
        if names and len(names) <= 2 and self._take(Kind.DECLARE):
            key, value = names if len(names) == 2 else ("", names[0])
            return key, value, self.pipeline()
        self._next = start
        return "", "", self.pipeline()

    def assignment(self) -> nodes.Assign | nodes.Pipeline:
        """A pipeline, with or without `$name :=` before it."""
        self._blank()
        start = self._next
        token = self._peek()
        if token is not None and token.kind is Kind.VARIABLE and token.text != "$":
            self._next += 1
            self._blank()
            if self._take(Kind.DECLARE):
                return nodes.Assign(token.text, declare=True, pipeline=self.pipeline())
            if self._take(Kind.ASSIGN):
                return nodes.Assign(token.text, declare=False, pipeline=self.pipeline())
            self._next = start
        return self.pipeline()

    def pipeline(self) -> nodes.Pipeline:
        """Commands joined by `|`."""
        commands = [self._command()]
        while self._take(Kind.PIPE):
            commands.append(self._command())
            if isinstance(commands[-1].operands[0], nodes.Literal):
                self._unexpected("a value cannot take what is piped into it")
        return nodes.Pipeline(tuple(commands))

    def _command(self) -> nodes.Command:
        operands: list[nodes.Operand] = []
        while True:
            spaced = self._blank() or not operands
            token = self._peek()
            if token is None or token.kind in (Kind.PIPE, Kind.CLOSE):
                break
            if not spaced:
                self._unexpected()
            operands.append(self._operand(token))
        if not operands:
            self._unexpected("a value is missing")
        return nodes.Command(tuple(operands))

    def _operand(self, token: Token) -> nodes.Operand:  # noqa: RET503 - `_fail` never returns
        self._next += 1
        match token.kind:
            case Kind.FIELD:
                return nodes.Dot((token.text[1:], *self._path()))
            case Kind.DOT:
                return nodes.Dot()
            case Kind.VARIABLE:
                return nodes.Variable(token.text, self._path())
            case Kind.WORD if token.text in _CONSTANTS:
                return nodes.Literal(_CONSTANTS[token.text])
            case Kind.WORD if token.text in FUNCTIONS:
                return nodes.Function(token.text)
            case Kind.WORD:
                _fail(token, f"function {token.text!r} is not defined")
            case Kind.OPEN:
                return self._group(token)
            case Kind.STRING | Kind.RAW | Kind.CHARACTER | Kind.NUMBER:
                return nodes.Literal(_literal(token))
            case _:
                _fail(token, f"unexpected {token.text!r}")

    def _group(self, token: Token) -> nodes.Group:
        self._depth += 1
        if self._depth > DEPTH_MAX:
            _fail(token, f"more than {DEPTH_MAX} levels of parentheses")
        pipeline = self.pipeline()
        if not self._take(Kind.CLOSE):
            _fail(token, "a parenthesis is not closed")
        self._depth -= 1
        return nodes.Group(pipeline, self._path())

    def _path(self) -> tuple[str, ...]:
        path: list[str] = []
        while (token := self._peek()) is not None and token.kind is Kind.FIELD:
            path.append(token.text[1:])
            self._next += 1
        return tuple(path)

    def _peek(self) -> Token | None:
        return self._tokens[self._next] if self._next < len(self._tokens) else None

    def _take(self, kind: Kind) -> bool:
        token = self._peek()
        if token is None or token.kind is not kind:
            return False
        self._next += 1
        return True

    def _blank(self) -> bool:
        return self._take(Kind.BLANK)

    def _unexpected(self, problem: str = "") -> NoReturn:
        token = self._peek()
        if token is None:
            _fail(self._action, problem or "the action ends too early")
        _fail(token, problem or f"unexpected {token.text!r}")


def _literal(token: Token) -> Any:
    match token.kind:
        case Kind.RAW:
            return token.text[1:-1]
        case Kind.STRING:
            return _unescaped(token)
        case Kind.CHARACTER:
            character = _unescaped(token)
            if len(character) != 1:
                _fail(token, f"{token.text} is not one character")
            return ord(character)
        case _:
            return _number(token)


def _number(token: Token) -> int | float:
    text = token.text.replace("_", "")
    digits = text.lstrip("+-")
    try:
        if len(digits) > 1 and digits.isdigit() and digits.startswith("0"):
            return int(text, 8)
        return int(text, 0)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        _fail(token, f"{token.text!r} is not a number")


def _unescaped(token: Token) -> str:
    def replace(match: re.Match[str]) -> str:
        body = match[1]
        if body in _ESCAPES:
            return _ESCAPES[body]
        if body[0] in "uUx" and len(body) > 1:
            code = int(body[1:], 16)
        elif body.isdigit() and len(body) == 3:
            code = int(body, 8)
        else:
            _fail(token, f"unknown escape \\{body}")
        if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            _fail(token, f"\\{body} is no character")
        return chr(code)

    return _ESCAPE.sub(replace, token.text[1:-1])


def _keyword(action: Action) -> str:
    """The first word of the action, empty when it does not start with a word."""
    if not action.tokens:
        _fail(action, "the action is empty")
    first = action.tokens[0]
    return first.text if first.kind is Kind.WORD else ""


def _spelled(action: Action) -> str:
    return "{{" + "".join(token.text for token in action.tokens) + "}}"


def _fail(where: Action | Token, problem: str) -> NoReturn:
    raise InvalidArgument(f"--format, character {where.position}: {problem}")
