"""Click parameter types over the grammars, and the options many commands share."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

import click
from typing_extensions import override

from shoal.docker.words import spell
from shoal.errors import InvalidArgument

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
Decorator = Callable[[FunctionT], FunctionT]


class Parsed(click.ParamType[Any]):
    """A value read by one of the pure parsers; click's message then names the flag."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value, or a usage error with the parser's message."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except InvalidArgument as error:
            self.fail(error.message, param, ctx)


class Word(click.ParamType[Any]):
    """One of the members of an enum, written in lower case with hyphens."""

    def __init__(self, *members: IntEnum) -> None:
        self._members = {spell(member): member for member in members}
        self.name = "|".join(self._members)

    @override
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The member."""
        if not isinstance(value, str):
            return value
        if value not in self._members:
            self.fail(f"{value!r} is not one of {', '.join(self._members)}", param, ctx)
        return self._members[value]

    @override
    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[click.shell_completion.CompletionItem]:
        """The words that start with what was typed."""
        return [
            click.shell_completion.CompletionItem(word)
            for word in self._members
            if word.startswith(incomplete)
        ]


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The parameters the user gave; click passes None or () for the others."""
    return {name: value for name, value in values.items() if value is not None and value != ()}


def combined(*decorators: Callable[[Any], Any]) -> Callable[[FunctionT], FunctionT]:
    """Several decorators as one; the first is listed first in the help."""

    def apply(function: FunctionT) -> FunctionT:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


autolock_option = click.option(
    "--autolock",
    type=bool,
    is_flag=False,
    flag_value="true",
    metavar="[true|false]",
    help="Whether managers need the unlock key after a restart",
)
format_option = click.option(
    "--format",
    "template",
    default="",
    metavar="FORMAT",
    help="json, a Go template, or 'table TEMPLATE'",
)
inspect_format_option = click.option(
    "-f", "--format", "template", default="", metavar="FORMAT", help="json or a Go template"
)
filter_option = click.option(
    "-f", "--filter", "filters", multiple=True, metavar="KEY=VALUE", help="Only what fits"
)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Only print ids")
no_trunc_option = click.option("--no-trunc", is_flag=True, help="Do not cut anything short")
no_resolve_option = click.option("--no-resolve", is_flag=True, help="Print ids, not names")
detach_option = click.option(
    "-d", "--detach", is_flag=True, help="Do not wait for the service to converge"
)
quiet_progress_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress")
node_option = click.option(
    "--node", "node_name", metavar="NAME", help="Only this node of the context"
)
