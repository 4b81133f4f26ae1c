"""Labs for tests: unique names, a short directory, and everything taken down whatever happens."""

from __future__ import annotations

import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmctl.lab import labs, record
from swarmctl.lab.plan import LabPlan, NodePlan, node_paths

STANDIN = Path(__file__).with_name("standin.py")
REPOSITORY = Path(__file__).parents[3]


def eventually(check: Callable[[], object], *, timeout_s: float = 60.0) -> None:
    """Wait until `check` is true; fail the test after the deadline."""
    deadline_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline_s, "condition not met in time"
        time.sleep(0.02)


def standin_command(break_at: dict[str, str] | None = None) -> labs.Command:
    """Starts the stand-in daemon; break_at: node -> where it is to fail."""

    def command(lab: LabPlan, node: NodePlan) -> list[str]:
        run = node_paths(lab.directory, lab.name, node.name).run
        words = [
            "/usr/bin/env", f"PYTHONPATH={REPOSITORY}", sys.executable, "-P", str(STANDIN),
            "--run-dir", run, "--hostname", node.name,
        ]  # fmt: skip
        return [*words, "--break", (break_at or {}).get(node.name, "")]

    return command


@pytest.fixture
def root(monkeypatch):
    directory = tempfile.mkdtemp(prefix="sl-")
    monkeypatch.setenv("SHOAL_CONFIG_DIR", f"{directory}-config")
    yield directory
    shutil.rmtree(directory, ignore_errors=True)
    shutil.rmtree(f"{directory}-config", ignore_errors=True)


@pytest.fixture
def lab_name(root):
    name = f"t{secrets.token_hex(4)}"
    yield name
    with record.lock(name):
        labs.take_down(root, name)
