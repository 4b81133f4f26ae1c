"""The tree of a template. Frozen; every node is made by the parser alone."""

from __future__ import annotations

from typing import Any

import msgspec


class Tree(msgspec.Struct, frozen=True):
    """A sequence of nodes."""

    nodes: tuple[Node, ...] = ()


class Text(msgspec.Struct, frozen=True):
    """Text to copy."""

    text: str


class Output(msgspec.Struct, frozen=True):
    """A pipeline whose value is printed."""

    pipeline: Pipeline


class Assign(msgspec.Struct, frozen=True):
    """`$name := pipeline`, or with `declare` false `$name = pipeline`. Prints nothing."""

    name: str
    declare: bool
    pipeline: Pipeline


class If(msgspec.Struct, frozen=True):
    """`if pipeline`; the dot stays."""

    condition: Assign | Pipeline
    body: Tree
    otherwise: Tree


class With(msgspec.Struct, frozen=True):
    """`with pipeline`: the dot becomes its value."""

    condition: Assign | Pipeline
    body: Tree
    otherwise: Tree


class Range(msgspec.Struct, frozen=True):
    """`range $key, $value := pipeline`; one variable alone takes the value."""

    key: str
    value: str
    pipeline: Pipeline
    body: Tree
    otherwise: Tree


class Leave(msgspec.Struct, frozen=True):
    """`break`, or `continue` when `again`."""

    again: bool


class Pipeline(msgspec.Struct, frozen=True):
    """Commands; each passes its value to the next as the last argument."""

    commands: tuple[Command, ...]


class Command(msgspec.Struct, frozen=True):
    """A value, or a function with its arguments."""

    operands: tuple[Operand, ...]


class Dot(msgspec.Struct, frozen=True):
    """The dot and the fields taken from it."""

    path: tuple[str, ...] = ()


class Variable(msgspec.Struct, frozen=True):
    """`$name.field...`; the name `$` is the value the template was given."""

    name: str
    path: tuple[str, ...] = ()


class Literal(msgspec.Struct, frozen=True):
    """A string, number, truth value or nil."""

    value: Any


class Function(msgspec.Struct, frozen=True):
    """A function by name."""

    name: str


class Group(msgspec.Struct, frozen=True):
    """A pipeline in parentheses and the fields taken from its value."""

    pipeline: Pipeline
    path: tuple[str, ...] = ()


Operand = Dot | Variable | Literal | Function | Group
Node = Text | Output | Assign | If | With | Range | Leave
