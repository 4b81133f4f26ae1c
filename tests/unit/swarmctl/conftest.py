"""Fixtures: a fake daemon, and the command line against it."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from click.testing import CliRunner, Result

from swarmctl.cli import cli
from tests.unit.swarmctl.fake import FakeDaemon


@pytest.fixture(autouse=True)
def settings(tmp_path, monkeypatch):
    """No test reads or writes the user's own contexts."""
    monkeypatch.setenv("SHOAL_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.delenv("SWARM_HOST", raising=False)
    monkeypatch.delenv("SWARM_CONTEXT", raising=False)
    return tmp_path / "config"


@pytest.fixture
def daemon():
    with TemporaryDirectory(prefix="shoalctl") as directory:  # short: a socket's path is limited
        server = FakeDaemon(Path(directory))
        yield server
        server.stop()


@pytest.fixture
def watched_daemon():
    with TemporaryDirectory(prefix="shoalctl") as directory:
        server = FakeDaemon(Path(directory), watch=True)
        yield server
        server.stop()


def run(*arguments: str, host: str = "", stdin: bytes | None = None) -> Result:
    """Run the command line in this process."""
    flags = ["--host", host] if host else []
    return CliRunner().invoke(cli, [*flags, *arguments], input=stdin, prog_name="swarmctl")
