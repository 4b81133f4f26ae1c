"""Command groups whose members are imported when they are used.

Listing a group shows each member's help line from the table, so that neither `--help` nor
completion imports the modules behind it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem
from typing_extensions import override


class Lazy(NamedTuple):
    """Where a command lives, `module:attribute`, and its help line."""

    path: str
    help: str


class LazyGroup(click.Group):
    """A group that knows its members by name and loads one when it is called."""

    def __init__(
        self, *args: Any, members: Mapping[str, Lazy] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._members = dict(members or {})

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every member's name, in alphabetical order."""
        return sorted({*super().list_commands(ctx), *self._members})

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The member, imported now."""
        return self.load(cmd_name) if cmd_name in self._members else self.commands.get(cmd_name)

    @override
    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of members and flags that start with what was typed, without importing any."""
        names = [
            CompletionItem(name, help=help_line)
            for name, help_line in self._help_lines()
            if name.startswith(incomplete)
        ]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def load(self, name: str) -> click.Command:
        """Import the member."""
        module_name, _, attribute = self._members[name].path.partition(":")
        command = getattr(importlib.import_module(module_name), attribute)
        if not isinstance(command, click.Command):
            raise TypeError(f"{self._members[name].path} is not a command")
        return command

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of members without importing them."""
        rows = self._help_lines()
        if rows:
            with formatter.section("Commands"):
                formatter.write_dl(rows)

    def _help_lines(self) -> list[tuple[str, str]]:
        lines = [(name, member.help) for name, member in self._members.items()]
        lines += [
            (name, command.get_short_help_str(80))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        return sorted(lines)
