"""Templates in services, secrets and configs: the documented part of Go's language, no more. Pure.

A placeholder is a field of the service, the node or the task (`{{.Service.Name}}`), a label of the
service (`{{index .Service.Labels "key"}}`), a quoted text (`{{"{{"}}`), or, in the content of
secrets and configs, a call with one quoted argument: `secret`, `config` or `env`. Everything else
is refused by its name, when the object is created as well as when it is expanded; text is never
passed on half-expanded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping

from shoal.errors import InvalidArgument
from shoal.model.row import Row

FIELDS = (
    "Service.ID",
    "Service.Name",
    "Node.ID",
    "Node.Hostname",
    "Node.Platform.OS",
    "Node.Platform.Architecture",
    "Task.ID",
    "Task.Name",
    "Task.Slot",
)
FUNCTIONS = ("secret", "config", "env")
"""In the content of secrets and configs alone."""
GOLANG = "golang"
"""Name of the one template driver."""
PLACEHOLDERS_MAX = 500
"""In one template: managers parse it beside their heartbeats."""
QUOTED_LENGTH_MAX = 512
PLACEHOLDER_LENGTH_MAX = 1_200
"""With its braces; a quoted text of escapes alone is twice as long as what it stands for."""
PLACEHOLDERS_LENGTH_MAX = 64 << 10
"""All of one template together: what lies between them is passed by at once, they are read."""
_SHOWN_MAX = 60

# Possessive throughout: whatever is written, it is read once.
_QUOTED = rf'"(?:[^"\\\n]|\\.){{0,{QUOTED_LENGTH_MAX}}}+"|`[^`]{{0,{QUOTED_LENGTH_MAX}}}+`'
_PLACEHOLDER = re.compile(rf"\{{\{{((?:{_QUOTED}|[^\"`}}]|\}}(?!\}}))*+)\}}\}}", re.DOTALL)
_FIELD = re.compile(r"\.([A-Za-z]+(?:\.[A-Za-z]+)*+)")
_LABEL = re.compile(rf"index\s+\.Service\.Labels\s+({_QUOTED})")
_DOTTED_LABEL = re.compile(r"\.Service\.Labels\.(\w++)", re.ASCII)
_CALL = re.compile(rf"([a-z]+)\s+({_QUOTED})")
_TEXT = re.compile(_QUOTED)
_ESCAPED = re.compile(r'(?:[^\\]|\\[\\"ntr])*+', re.DOTALL)


class Part(Row, frozen=True):
    """One piece of a template. kind: "text", "field", "label", or the name of a function."""

    kind: str
    value: str


class Sources(Row, frozen=True):
    """What placeholders stand for. fields: by name, as in `FIELDS`; labels: the service's."""

    fields: Mapping[str, str]
    labels: Mapping[str, str]
    functions: Mapping[str, Callable[[str], str]] = {}
    """Each raises InvalidArgument for an argument that names nothing."""


def parse(text: str, *, functions: bool = False) -> tuple[Part, ...]:
    """The pieces of a template; cost is linear. Raises: InvalidArgument naming the placeholder.

    functions: it is the content of a secret or a config.
    """
    return tuple(_parts(text, functions))


def expand(parts: tuple[Part, ...], sources: Sources, *, size_max: int | None = None) -> str:
    """The text of a template. Raises: InvalidArgument, also when it has more characters."""
    pieces: list[str] = []
    size = 0
    for part in parts:
        pieces.append(_value(part, sources))
        size += len(pieces[-1])
        if size_max is not None and size > size_max:
            raise InvalidArgument(f"template: its text is longer than {size_max} characters")
    return "".join(pieces)


def calls(parts: tuple[Part, ...], function: str) -> list[str]:
    """The arguments with which a template calls a function."""
    return [part.value for part in parts if part.kind == function]


def _parts(text: str, functions: bool) -> Iterator[Part]:
    end = count = read = 0
    while (start := text.find("{{", end)) >= 0:
        count += 1
        if count > PLACEHOLDERS_MAX:
            raise InvalidArgument(f"template: more than {PLACEHOLDERS_MAX} placeholders")
        if start > end:
            yield Part("text", text[end:start])
        found = _PLACEHOLDER.match(text, start, start + PLACEHOLDER_LENGTH_MAX)
        if found is None:
            # Of a secret's content nothing is shown that was not meant as a placeholder.
            where = f"character {start}" if functions else _shown(text)
            raise InvalidArgument(
                f"template: {where} has a {{{{ without its }}}}, or more than"
                f" {QUOTED_LENGTH_MAX} characters between quotes, or {PLACEHOLDER_LENGTH_MAX}"
                " between braces"
            )
        read += found.end() - start
        if read > PLACEHOLDERS_LENGTH_MAX:
            raise InvalidArgument(
                f"template: its placeholders have more than {PLACEHOLDERS_LENGTH_MAX} characters"
                " together"
            )
        yield _part(found.group(1).strip(), functions)
        end = found.end()
    if end < len(text):
        yield Part("text", text[end:])


def _part(expression: str, functions: bool) -> Part:
    if (field := _FIELD.fullmatch(expression)) and field.group(1) in FIELDS:
        return Part("field", field.group(1))
    if label := _LABEL.fullmatch(expression):
        return Part("label", _unquoted(label.group(1)))
    if label := _DOTTED_LABEL.fullmatch(expression):
        return Part("label", label.group(1))
    if _TEXT.fullmatch(expression):
        return Part("text", _unquoted(expression))
    if (call := _CALL.fullmatch(expression)) and call.group(1) in FUNCTIONS:
        if functions:
            return Part(call.group(1), _unquoted(call.group(2)))
        raise InvalidArgument(
            f"template: {call.group(1)} is only known in the content of secrets and configs"
        )
    known = ", ".join(f"{{{{.{name}}}}}" for name in FIELDS)
    more = "".join(f', {{{{{name} "NAME"}}}}' for name in FUNCTIONS) if functions else ""
    raise InvalidArgument(
        f"template: {_shown('{{' + expression + '}}')} is unknown, use one of {known},"
        f' {{{{index .Service.Labels "KEY"}}}}{more}'
    )


def _value(part: Part, sources: Sources) -> str:
    match part.kind:
        case "text":
            return part.value
        case "field":
            return sources.fields[part.value]
        case "label":
            return sources.labels.get(part.value, "")
        case _:
            return sources.functions[part.kind](part.value)


def _unquoted(text: str) -> str:
    inner = text[1:-1]
    if text.startswith("`") or "\\" not in inner:
        return inner
    known = _ESCAPED.match(inner)
    end = 0 if known is None else known.end()
    if end < len(inner):
        raise InvalidArgument(f"template: {inner[end : end + 2]} is unknown in a quoted text")
    decoded: str = json.loads(f'"{inner}"', strict=False)  # the same escapes, at the speed of C
    return decoded


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_MAX else f"{text[:_SHOWN_MAX]}...")
