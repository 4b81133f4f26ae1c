"""Help and completion are fast because they import little; completion offers what exists."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from swarmctl.cli import MEMBERS, cli
from tests.unit.swarmctl.conftest import run

PROBE = """
import sys
from swarmctl.cli import cli
try:
    cli({arguments!r}, prog_name="swarmctl")
except SystemExit:
    pass
heavy = ("grpc", "google.protobuf", "cryptography", "structlog", "shoal.api", "rich", "aiohttp")
print("loaded:", [name for name in heavy if name in sys.modules], file=sys.stderr)
"""


def probe(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROBE.format(arguments=list(arguments))],
        capture_output=True, text=True, timeout=30, check=True,
        env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["service", "create", "--help"], ["node", "--help"]]
)
def test_help_imports_nothing_heavy(arguments):
    result = probe(*arguments)
    assert result.stderr == "loaded: []\n"
    assert "swarmctl" in result.stdout


def complete(words: str, position: int) -> list[str]:
    result = probe(
        _SWARMCTL_COMPLETE="bash_complete", COMP_WORDS=f"swarmctl {words}", COMP_CWORD=str(position)
    )
    assert result.stderr == "loaded: []\n"
    return [line.partition(",")[2] for line in result.stdout.splitlines()]


def test_completion_of_commands_and_flags():
    assert complete("", 1) == sorted(MEMBERS)
    assert complete("jo", 1) == ["join", "join-token"]
    assert complete("service ro", 2) == ["rollback"]
    assert complete("service hi", 2) == ["history"]
    assert complete("service rollback --t", 3) == ["--to"]
    assert "--update-delay" in complete("service create --update-d", 3)
    assert complete("node update --availability d", 4) == ["drain"]


def test_completion_of_names(daemon, monkeypatch):
    result = probe(
        _SWARMCTL_COMPLETE="bash_complete",
        COMP_WORDS="swarmctl node inspect al",
        COMP_CWORD="3",
        SWARM_HOST=daemon.address,
    )
    assert result.stdout == "plain,alpha\n"


def test_completion_without_a_daemon_is_silent():
    result = probe(
        _SWARMCTL_COMPLETE="bash_complete",
        COMP_WORDS="swarmctl service ps w",
        COMP_CWORD="3",
        SWARM_HOST="unix:///nonexistent.sock",
    )
    assert result.stdout.strip() == ""
    assert result.stderr.startswith("loaded: [")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell):
    result = run("completion", shell)
    assert result.exit_code == 0
    assert f"_SWARMCTL_COMPLETE={shell}_complete" in result.output


def test_every_command_in_the_table_exists():
    for name in MEMBERS:
        command = cli.load(name)
        assert command.name == name


def test_help_tells_the_exit_codes():
    result = run("--help")
    assert "    3  no such object" in result.output


def test_usage_errors():
    unknown = run("nosuch")
    assert unknown.exit_code == 2
    assert "No such command 'nosuch'" in unknown.stderr
    bad = run("service", "create", "--publish", "x", "web:1")
    assert bad.exit_code == 2
    assert "Invalid value for '--publish'" in bad.stderr
