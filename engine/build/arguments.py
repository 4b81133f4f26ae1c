"""Build arguments: which are visible where, and which a `RUN` is given. Pure.

Those of proxies are there without being declared, and then leave no trace in the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

PROXIES = frozenset(
    {
        name
        for upper in ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
        for name in (upper, upper.lower())
    }
)

Declared = tuple[str, str | None]
"""A name and its default, if it has one."""


class Arguments:
    """Of one build: what was given, what the file declares before its first stage, and used."""

    def __init__(self, given: Mapping[str, str | None]) -> None:
        """given: by `--build-arg`; None: the client has no value for it."""
        self.given = {name: value for name, value in given.items() if value is not None}
        self.metas: dict[str, str] = {}
        self._used: set[str] = set()

    def declare_meta(self, name: str, default: str | None) -> None:
        """`ARG` before the first stage."""
        self._used.add(name)
        value = self.given.get(name, default)
        if value is not None:
            self.metas[name] = value

    def value_of(self, name: str, default: str | None) -> str | None:
        """What an `ARG` in a stage comes to."""
        self._used.add(name)
        return self.given.get(name, self.metas.get(name) if default is None else default)

    def unused(self) -> list[str]:
        """What was given and never declared."""
        return sorted(self.given.keys() - self._used - PROXIES)


class StageArguments:
    """The arguments one stage has declared so far."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._declared: dict[str, str | None] = {}

    def declare(self, found: Iterable[Declared]) -> None:
        """`ARG` in the stage."""
        for name, default in found:
            self._declared[name] = self._arguments.value_of(name, default)

    def visible(self) -> dict[str, str]:
        """What instructions may refer to."""
        undeclared = {
            name: value for name, value in self._arguments.given.items() if name in PROXIES
        }
        return undeclared | {
            name: value for name, value in self._declared.items() if value is not None
        }

    def for_run(self, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
        """What a `RUN` gets besides its environment, and what of it the history shows."""
        given = {name: value for name, value in self.visible().items() if name not in environment}
        shown = [f"{name}={given[name]}" for name in sorted(given) if name in self._declared]
        return [f"{name}={value}" for name, value in sorted(given.items())], shown
