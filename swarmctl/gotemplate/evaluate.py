"""A tree and a value into text.

Variables live in scopes as in Go: what a block declares ends with it. Ranges go over lists in
order and over maps by sorted key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from shoal.errors import InvalidArgument
from swarmctl.gotemplate import nodes
from swarmctl.gotemplate.functions import call
from swarmctl.gotemplate.values import MISSING, field, text, truth

_NOTHING = object()


def render(tree: nodes.Tree, value: Any) -> str:
    """The text of a template for one value. Raises InvalidArgument where Go would fail."""
    out: list[str] = []
    _Scope(value, None, {"$": value}).walk(tree, value, out)
    return "".join(out)


class _Left(Exception):
    def __init__(self, *, again: bool) -> None:
        super().__init__()
        self.again = again


class _Scope:
    """The variables of one block; inner blocks see the outer ones."""

    def __init__(self, root: Any, outer: _Scope | None, variables: dict[str, Any]) -> None:
        self._root = root
        self._outer = outer
        self._variables = variables

    def walk(self, tree: nodes.Tree, dot: Any, out: list[str]) -> None:
        """Append the text of the nodes."""
        for node in tree.nodes:
            self._node(node, dot, out)

    def _node(self, node: nodes.Node, dot: Any, out: list[str]) -> None:
        match node:
            case nodes.Text():
                out.append(node.text)
            case nodes.Output():
                out.append(text(self._pipeline(node.pipeline, dot)))
            case nodes.Assign():
                self._assign(node, dot)
            case nodes.If():
                scope, value = self._condition(node.condition, dot)
                scope.walk(node.body if truth(value) else node.otherwise, dot, out)
            case nodes.With():
                scope, value = self._condition(node.condition, dot)
                if truth(value):
                    scope.walk(node.body, value, out)
                else:
                    scope.walk(node.otherwise, dot, out)
            case nodes.Range():
                self._range(node, dot, out)
            case nodes.Leave():
                raise _Left(again=node.again)
            case _:
                assert_never(node)

    def _range(self, node: nodes.Range, dot: Any, out: list[str]) -> None:
        items = list(_items(self._pipeline(node.pipeline, dot)))
        if not items:
            self._inner().walk(node.otherwise, dot, out)
        for key, item in items:
            names = {name: value for name, value in ((node.key, key), (node.value, item)) if name}
            try:
                self._inner(names).walk(node.body, item, out)
            except _Left as left:
                if not left.again:
                    break

    def _condition(self, condition: nodes.Assign | nodes.Pipeline, dot: Any) -> tuple[_Scope, Any]:
        scope = self._inner()
        if isinstance(condition, nodes.Assign):
            return scope, scope._assign(condition, dot)
        return scope, scope._pipeline(condition, dot)

    def _inner(self, variables: dict[str, Any] | None = None) -> _Scope:
        return _Scope(self._root, self, variables or {})

    def _assign(self, node: nodes.Assign, dot: Any) -> Any:
        value = self._pipeline(node.pipeline, dot)
        if node.declare:
            self._variables[node.name] = value
        else:
            self._owner(node.name)._variables[node.name] = value
        return value

    def _owner(self, name: str) -> _Scope:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope._variables:
                return scope
            scope = scope._outer
        raise InvalidArgument(f"--format: variable {name} is not defined")

    def _pipeline(self, pipeline: nodes.Pipeline, dot: Any) -> Any:
        value: Any = _NOTHING
        for command in pipeline.commands:
            value = self._command(command, dot, value)
        return value

    def _command(self, command: nodes.Command, dot: Any, piped: Any) -> Any:
        first, *rest = command.operands
        extra = [] if piped is _NOTHING else [piped]
        if isinstance(first, nodes.Function):
            if first.name in ("and", "or"):
                return self._short_circuit(first.name, rest, extra, dot)
            return call(first.name, [*(self._operand(item, dot) for item in rest), *extra])
        if rest or extra:
            raise InvalidArgument("--format: only a function takes arguments")
        return self._operand(first, dot)

    def _short_circuit(
        self, name: str, operands: Iterable[nodes.Operand], extra: list[Any], dot: Any
    ) -> Any:
        """As Go, stop at the first argument that decides."""
        value: Any = _NOTHING
        for operand in operands:
            value = self._operand(operand, dot)
            if truth(value) == (name == "or"):
                return value
        if extra:
            return extra[0]
        if value is _NOTHING:
            raise InvalidArgument(f"--format: {name} needs an argument")
        return value

    def _operand(self, operand: nodes.Operand, dot: Any) -> Any:
        match operand:
            case nodes.Dot():
                return _follow(dot, operand.path, "")
            case nodes.Variable():
                value = self._owner(operand.name)._variables[operand.name]
                return _follow(value, operand.path, operand.name)
            case nodes.Literal():
                return operand.value
            case nodes.Group():
                return _follow(self._pipeline(operand.pipeline, dot), operand.path, "(...)")
            case nodes.Function():
                return call(operand.name, [])
            case _:
                assert_never(operand)


def _follow(value: Any, path: Iterable[str], start: str) -> Any:
    for name in path:
        start = f"{start}.{name}"
        value = field(value, name, start)
    return value


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if value is MISSING or value is None:
        return ()
    if isinstance(value, Mapping):
        return sorted(value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return ((number, number) for number in range(value))
    if isinstance(value, list | tuple):
        return enumerate(value)
    raise InvalidArgument(f"--format: range cannot go over {text(value)!r}")
