"""docs/cli.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from swarmctl.cli import MEMBERS, cli
from swarmctl.commands.service_write import create_service, update_service
from swarmctl.exits import MEANINGS

TEXT = (Path(__file__).parents[3] / "docs" / "cli.md").read_text()


def test_the_table_of_exit_codes():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", TEXT, re.MULTILINE)
    assert {int(code): meaning for code, meaning in rows} == MEANINGS


@pytest.mark.parametrize("command", [create_service, update_service], ids=["create", "update"])
def test_every_flag_is_described(command):
    for parameter in command.params:
        if not isinstance(parameter, click.Option):
            continue
        flag = re.sub(r"-(add|rm)$", "", max(parameter.opts, key=len))
        known = f"`{flag}`" in TEXT or f"`{flag} " in TEXT
        if parameter.hidden:
            assert flag in TEXT.partition("Refused, as nodes run Linux:")[2][:400], flag
        elif flag.startswith(("--update-", "--rollback-")):
            assert f"`{flag.partition('-')[2].partition('-')[2].partition('-')[2]}`" in TEXT
        elif flag not in ("--cap", "--publish", "--mount"):
            assert known, flag


def test_every_command_is_described():
    for name in MEMBERS:
        assert re.search(rf"`{name}\b", TEXT), name
    for name in (
        "cluster", "network", "node", "service", "task", "image", "context", "secret", "config",
        "stack",
    ):  # fmt: skip
        group = cli.load(name)
        assert isinstance(group, click.Group)
        row = re.search(rf"`{name} ([a-z|\\]+)`", TEXT)
        assert row is not None
        described = set(re.findall(rf"`{name} ([a-z|\\]+)`", TEXT))
        words = {word.strip("\\") for names in described for word in names.split("|")}
        assert set(group.commands) <= words, name
