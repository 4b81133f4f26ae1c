"""YAML as Compose reads it, with the line that everything comes from.

Scalars follow YAML 1.2 where 1.1 surprises: `yes`, `on` and `22:22` are text; `0440` is octal, as
Docker has it. Merge keys and aliases are followed. Keys given twice, tags of other languages and
several documents are refused. The input is hostile: its size, its depth and what its aliases
expand to are bounded, and nothing in here recurses further than DEPTH_MAX.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import yaml

from shoal.errors import InvalidArgument

BYTES_MAX = 1 << 20
DEPTH_MAX = 40
NODES_MAX = 50_000
"""Values of a file, with those behind aliases counted each time."""

Path = tuple[str | int, ...]

_MERGE = "<<"
_CORE = "tag:yaml.org,2002:"
_TAGS = frozenset({"str", "int", "float", "bool", "null"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False,
             "FALSE": False}  # fmt: skip
_DECIMAL = re.compile(r"[-+]?[0-9]{1,40}")
_RADIX = re.compile(r"([-+]?)0([xob])([0-9a-fA-F_]{1,40})")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,40}|[0-9]{1,40}(?:\.[0-9]{0,40})?)(?:[eE][-+]?[0-9]{1,4})?")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Place(NamedTuple):
    """Where a value stands; line from 1 on."""

    file: str
    line: int


class Places:
    """The place of every value of a document by its path, and errors that name it."""

    def __init__(self, found: Mapping[Path, Place] | None = None) -> None:
        self.found = dict(found or {})

    def of(self, path: Path) -> Place | None:
        """The place of a value, or of the nearest one around it that has one."""
        for length in range(len(path), -1, -1):
            place = self.found.get(path[:length])
            if place is not None:
                return place
        return None

    def fault(self, path: Path, message: str) -> InvalidArgument:
        """An error at a value: `FILE:LINE: KEY: MESSAGE`."""
        place = self.of(path)
        where = f"{place.file}:{place.line}: " if place is not None else ""
        key = ".".join(map(str, path))
        return InvalidArgument(f"{where}{key}: {message}" if key else f"{where}{message}")

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """What is refused inside is refused at this value."""
        try:
            yield
        except InvalidArgument as error:
            if isinstance(error, LocatedError):
                raise
            raise LocatedError(self.fault(path, error.message).message) from error

    def over(self, other: Places) -> Places:
        """These, with the others below: a value of both is where this one has it."""
        return Places({**other.found, **self.found})


class _Node:
    """A value as it is written. content: text, a list of nodes, or of pairs of them."""

    __slots__ = ("content", "is_text", "kind", "line")

    def __init__(self, kind: str, line: int, content: Any, *, is_text: bool = False) -> None:
        """is_text: the scalar is text whatever it looks like."""
        self.kind = kind
        self.line = line
        self.content = content
        self.is_text = is_text


class LocatedError(InvalidArgument):
    """An error whose place is in its message already."""


class Document(NamedTuple):
    """A file: plain values, and where they stand."""

    value: dict[str, Any]
    places: Places


def read_document(text: str, file: str) -> Document:
    """The values of a file. Raises: InvalidArgument with the line."""
    size_bytes = len(text.encode(errors="surrogatepass"))
    if size_bytes > BYTES_MAX:
        raise LocatedError(f"{file}: {size_bytes} bytes, at most {BYTES_MAX}: keep data elsewhere")
    try:
        root = _composed(text, file)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        said = " ".join(part for part in (error.context, error.problem) if part)
        raise LocatedError(f"{file}:{line}: yaml: {said}") from error
    except yaml.YAMLError as error:
        raise LocatedError(f"{file}: yaml: {error}") from error
    if root is None or root.kind != "mapping":
        raise LocatedError(f"{file}:1: top-level object must be a mapping")
    reader = _Reader(file)
    value = reader.value(root, ())
    return Document(value, Places(reader.places))


def _composed(text: str, file: str) -> _Node | None:
    """The nodes of the one document. Built from events, so that depth is judged on the way."""
    anchors: dict[str, _Node] = {}
    open_nodes: list[_Node] = []
    keys: list[_Node | None] = []
    root: _Node | None = None
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.DocumentStartEvent):
            if root is not None:
                raise _error(file, event, "a second document: give it as a file of its own")
            continue
        if isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            open_nodes.pop()
            keys.pop()
            continue
        node = _node(event, anchors, file)
        if node is None:
            continue
        if root is None:
            root = node
        elif open_nodes:
            _attach(open_nodes[-1], keys, node)
        if isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            open_nodes.append(node)
            keys.append(None)
            if len(open_nodes) > DEPTH_MAX:
                raise _error(file, event, f"values are nested more than {DEPTH_MAX} deep")
    return root


def _node(event: Any, anchors: dict[str, _Node], file: str) -> _Node | None:
    if isinstance(event, yaml.AliasEvent):
        known = anchors.get(event.anchor or "")
        if known is None:
            raise _error(file, event, f"alias *{event.anchor} has no anchor before it")
        return known
    line = _line(event)
    if isinstance(event, yaml.ScalarEvent):
        node = _Node("scalar", line, event.value, is_text=_is_text(event, file))
    elif isinstance(event, yaml.SequenceStartEvent):
        node = _Node("sequence", line, [])
    elif isinstance(event, yaml.MappingStartEvent):
        node = _Node("mapping", line, [])
    else:
        return None
    if event.anchor is not None:
        anchors[event.anchor] = node
    return node


def _is_text(event: Any, file: str) -> bool:
    """Whether a scalar is text whatever it looks like: in quotes, or by its tag."""
    if event.tag is None or event.tag == "!":
        return not event.implicit[0]
    name = event.tag.removeprefix(_CORE)
    if name == event.tag or name not in _TAGS:
        raise _error(file, event, f"tag {event.tag!r} is not known")
    return bool(name == "str")


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _attach(parent: _Node, keys: list[_Node | None], node: _Node) -> None:
    if parent.kind == "sequence":
        parent.content.append(node)
        return
    key = keys[-1]
    if key is None:
        keys[-1] = node
    else:
        parent.content.append((key, node))
        keys[-1] = None


def _error(file: str, event: Any, message: str) -> LocatedError:
    return LocatedError(f"{file}:{_line(event)}: yaml: {message}")


class _Reader:
    """Turns nodes into values, counting them."""

    def __init__(self, file: str) -> None:
        self.places: dict[Path, Place] = {}
        self._file = file
        self._left = NODES_MAX

    def value(self, node: _Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0:
            raise self._fault(node, f"more than {NODES_MAX} values, aliases followed")
        self._check_depth(node, path)
        self.places.setdefault(path, Place(self._file, node.line))
        if node.kind == "scalar":
            return node.content if node.is_text else scalar(node.content)
        if node.kind == "sequence":
            return [self.value(one, (*path, index)) for index, one in enumerate(node.content)]
        return self._mapping(node, path)

    def _mapping(self, node: _Node, path: Path) -> dict[str, Any]:
        self._check_depth(node, path)
        result: dict[str, Any] = {}
        merged: list[_Node] = []
        for key_node, value_node in node.content:
            if key_node.kind == "scalar" and key_node.content == _MERGE and not key_node.is_text:
                merged.append(value_node)
                continue
            key = self._key(key_node)
            if key in result:
                raise self._fault(key_node, f"mapping key {key!r} is there already")
            self.places[(*path, key)] = Place(self._file, key_node.line)
            result[key] = self.value(value_node, (*path, key))
        for one in merged:
            self._merge(one, path, result)
        return result

    def _merge(self, node: _Node, path: Path, into: dict[str, Any]) -> None:
        """Keys of another mapping, or of several, that are not there yet."""
        for one in node.content if node.kind == "sequence" else (node,):
            if one.kind != "mapping":
                raise self._fault(one, "map merge requires a map or a sequence of maps")
            self._left -= 1
            if self._left < 0:
                raise self._fault(one, f"more than {NODES_MAX} values, aliases followed")
            inner = _Reader(self._file)
            inner._left = self._left
            value = inner._mapping(one, (*path, _MERGE))
            self._left = inner._left
            taken = {key for key in value if key not in into}
            depth = len(path)
            for found, place in inner.places.items():
                if len(found) > depth + 1 and found[depth + 1] in taken:
                    self.places.setdefault((*path, *found[depth + 1 :]), place)
            into.update({key: value[key] for key in value if key in taken})

    def _key(self, node: _Node) -> str:
        if not node.kind == "scalar":
            raise self._fault(node, "a key must be text")
        value = node.content if node.is_text else scalar(node.content)
        if not isinstance(value, str):
            raise self._fault(node, f"key {node.content!r} must be text: write it in quotes")
        return value

    def _check_depth(self, node: _Node, path: Path) -> None:
        if len(path) > DEPTH_MAX:
            raise self._fault(node, f"values are nested more than {DEPTH_MAX} deep")

    def _fault(self, node: _Node, message: str) -> LocatedError:
        return LocatedError(f"{self._file}:{node.line}: yaml: {message}")


def scalar(text: str) -> Any:
    """The value of a plain scalar: None, a boolean, a number, or the text itself."""
    if text in _NULL:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if _DECIMAL.fullmatch(text):
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits.startswith("0"):
            return _octal(text, digits)
        return int(text)
    radix = _RADIX.fullmatch(text)
    if radix:
        try:
            return int(f"{radix[1]}0{radix[2]}{radix[3]}", 0)
        except ValueError:
            return text
    number = float(text) if _FLOAT.fullmatch(text) else math.inf
    return number if math.isfinite(number) else text


def _octal(text: str, digits: str) -> int | float:
    """`0440` as Docker reads it; what has an 8 or a 9 in it is a decimal fraction to it."""
    if set(digits) <= set("01234567"):
        return -int(digits, 8) if text.startswith("-") else int(digits, 8)
    return float(text)
