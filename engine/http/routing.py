"""Which handler answers which path. Pure.

A template is a path with variables: `{id}` is one segment, `{name:path}` one or more, for image
names, which contain slashes. Of several routes that match, the first one listed answers.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import unquote

from engine.http.call import Answer, Call

Handler = Callable[[Call], Awaitable[Answer]]

_VARIABLE = re.compile(r"\{([a-z_]+)(:path)?\}")


class Route(NamedTuple):
    """One operation. follows_client: cancelled when the client goes away, as streams are."""

    method: str
    template: str
    handler: Handler
    follows_client: bool = False


class Table:
    """All routes."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes: dict[tuple[str, str], list[tuple[re.Pattern[str], Route]]] = {}
        for route in routes:
            key = route.method, _first_segment(route.template)
            self._routes.setdefault(key, []).append((_pattern(route.template), route))

    def find(self, method: str, path: str) -> tuple[Route, Mapping[str, str]] | None:
        """The route of a path without version prefix, with its variables decoded."""
        for pattern, route in self._routes.get((method, _first_segment(path)), ()):
            found = pattern.fullmatch(path)
            if found is not None:
                return route, {name: unquote(value) for name, value in found.groupdict().items()}
        return None


def clean(path: str) -> str:
    """A path without empty, `.` and `..` segments; clients are sent to it."""
    cleaned = posixpath.normpath(path)
    if cleaned.startswith("//"):
        cleaned = cleaned[1:]
    return cleaned + "/" if path.endswith("/") and cleaned != "/" else cleaned


def _first_segment(path: str) -> str:
    return path[1:].partition("/")[0]


def _pattern(template: str) -> re.Pattern[str]:
    parts = _VARIABLE.split(template)  # text, name, ":path" or None, text, …
    text = re.escape(parts[0])
    for name, kind, literal in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        text += f"(?P<{name}>{'.+' if kind else '[^/]+'})" + re.escape(literal)
    return re.compile(text)
