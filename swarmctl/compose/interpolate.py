"""Variables in Compose files: `$V`, `${V}`, `${V:-d}`, `${V-d}`, `${V:?e}`, `${V?e}`, `${V:+w}`,
`${V+w}` and `$$`. Pure: the environment comes in.

Defaults may hold variables themselves, at most NESTED_MAX deep. Only values of the sections below
are touched, never keys. What is to be a number or a boolean is made one afterwards, by its place
in the file, as Docker does.
"""  # noqa: D205

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from shoal.errors import InvalidArgument
from swarmctl.compose.tree import Document, Path, Places

SECTIONS = ("services", "volumes", "networks", "secrets", "configs")
NESTED_MAX = 10
LENGTH_MAX = 256 << 10
"""Of a value after its variables are put in."""

_NAME = re.compile(r"[_A-Za-z][_A-Za-z0-9]*")
_OPERATORS = (":-", "-", ":?", "?", ":+", "+")

Warn = Callable[[str], None]


def interpolate(document: Document, environ: Mapping[str, str], warn: Warn) -> Document:
    """The document with its variables replaced. Raises: InvalidArgument with the line.

    warn: is told once of each variable that is not set and has no default.
    """
    missing: set[str] = set()
    value = dict(document.value)
    for section in SECTIONS:
        if section in value:
            filler = _Filler(document.places, environ, missing)
            value[section] = filler.filled(value[section], (section,))
    for name in sorted(missing):
        warn(f"The {name!r} variable is not set. Defaulting to a blank string.")
    return Document(value, document.places)


class _Filler:
    def __init__(self, places: Places, environ: Mapping[str, str], missing: set[str]) -> None:
        self._places = places
        self._environ = environ
        self._missing = missing

    def filled(self, value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {key: self.filled(one, (*path, key)) for key, one in value.items()}
        if isinstance(value, list):
            return [self.filled(one, (*path, index)) for index, one in enumerate(value)]
        if not isinstance(value, str):
            return value
        with self._places.at(*path):
            text = substitute(value, self._environ, missing=self._missing)
            cast = cast_of(path)
            return text if cast is None else cast(text)


def substitute(text: str, environ: Mapping[str, str], *, missing: set[str] | None = None) -> str:
    """The text with its variables replaced.

    missing: gets the names of variables that are not set and have no default.
    """
    if "$" not in text:
        return text
    unset: set[str] = set() if missing is None else missing
    result, _ = _Scanner(text, environ, unset).run(0, depth=0)
    if len(result) > LENGTH_MAX:
        raise InvalidArgument(f"the value has more than {LENGTH_MAX} characters")
    return result


class _Scanner:
    def __init__(self, text: str, environ: Mapping[str, str], missing: set[str]) -> None:
        self._text = text
        self._environ = environ
        self._missing = missing

    def run(self, start: int, *, depth: int) -> tuple[str, int]:
        """What is left of the text, or of the braces it is in, and where that ends."""
        if depth > NESTED_MAX:
            raise InvalidArgument(f"variables are nested more than {NESTED_MAX} deep")
        text, index = self._text, start
        out: list[str] = []
        while index < len(text):
            character = text[index]
            if character == "}" and depth:
                return "".join(out), index
            if character != "$":
                out.append(character)
                index += 1
                continue
            piece, index = self._variable(index + 1, depth)
            out.append(piece)
        if depth:
            raise self._invalid()
        return "".join(out), index

    def _variable(self, index: int, depth: int) -> tuple[str, int]:
        text = self._text
        if text.startswith("$", index):
            return "$", index + 1
        braced = text.startswith("{", index)
        name = _NAME.match(text, index + braced)
        if name is None:
            raise self._invalid()
        if not braced:
            return self._plain(name[0]), name.end()
        if text.startswith("}", name.end()):
            return self._plain(name[0]), name.end() + 1
        for operator in _OPERATORS:
            if text.startswith(operator, name.end()):
                word, end = _Scanner(text, self._environ, set()).run(
                    name.end() + len(operator), depth=depth + 1
                )
                return self._chosen(name[0], operator, word), end + 1
        raise self._invalid()

    def _plain(self, name: str) -> str:
        if name not in self._environ:
            self._missing.add(name)
        return self._environ.get(name, "")

    def _chosen(self, name: str, operator: str, word: str) -> str:
        value = self._environ.get(name)
        is_there = bool(value) if operator.startswith(":") else value is not None
        if operator.endswith("-"):
            return value or "" if is_there else word
        if operator.endswith("+"):
            return word if is_there else ""
        if not is_there:
            said = f": {word}" if word else ""
            raise InvalidArgument(f"required variable {name} is missing a value{said}")
        return value or ""

    def _invalid(self) -> InvalidArgument:
        return InvalidArgument(
            f"invalid interpolation format {self._text!r}: you may need to escape any $ with"
            " another $"
        )


def _integer(text: str) -> int:
    try:
        return int(text, 0) if not re.fullmatch(r"0[0-7]+", text) else int(text, 8)
    except ValueError:
        raise InvalidArgument(f"{text!r} must be a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(f"{text!r} must be a number") from None


def _boolean(text: str) -> bool:
    word = text.lower()
    if word in {"y", "yes", "true", "on"}:
        return True
    if word in {"n", "no", "false", "off"}:
        return False
    raise InvalidArgument(f"{text!r} must be true or false")


Cast = Callable[[str], Any]
_ANY = "*"
_UPDATE = {"parallelism": _integer, "max_failure_ratio": _number}
_CASTS: dict[Path, Cast] = {
    ("services", _ANY, "deploy", "replicas"): _integer,
    ("services", _ANY, "deploy", "resources", "limits", "pids"): _integer,
    ("services", _ANY, "deploy", "restart_policy", "max_attempts"): _integer,
    ("services", _ANY, "deploy", "placement", "max_replicas_per_node"): _integer,
    **{
        ("services", _ANY, "deploy", config, key): cast
        for config in ("update_config", "rollback_config")
        for key, cast in _UPDATE.items()
    },
    ("services", _ANY, "configs", _ANY, "mode"): _integer,
    ("services", _ANY, "secrets", _ANY, "mode"): _integer,
    ("services", _ANY, "healthcheck", "retries"): _integer,
    ("services", _ANY, "healthcheck", "disable"): _boolean,
    ("services", _ANY, "ports", _ANY, "target"): _integer,
    ("services", _ANY, "ports", _ANY, "published"): _integer,
    ("services", _ANY, "ulimits", _ANY): _integer,
    ("services", _ANY, "ulimits", _ANY, "hard"): _integer,
    ("services", _ANY, "ulimits", _ANY, "soft"): _integer,
    ("services", _ANY, "oom_score_adj"): _integer,
    **{
        ("services", _ANY, key): _boolean
        for key in ("init", "privileged", "read_only", "stdin_open", "tty")
    },
    ("services", _ANY, "volumes", _ANY, "read_only"): _boolean,
    ("services", _ANY, "volumes", _ANY, "volume", "nocopy"): _boolean,
    ("services", _ANY, "volumes", _ANY, "tmpfs", "size"): _integer,
    **{
        ("networks", _ANY, key): _boolean
        for key in ("external", "internal", "attachable", "enable_ipv6")
    },
    **{(section, _ANY, "external"): _boolean for section in ("volumes", "secrets", "configs")},
}


def cast_of(path: Path) -> Cast | None:
    """What text at this place is made into; None: it stays text."""
    length = len(path)
    for pattern, cast in _CASTS.items():
        if len(pattern) == length and all(
            want in (_ANY, have) for want, have in zip(pattern, path, strict=True)
        ):
            return cast
    return None
