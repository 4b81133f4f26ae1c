"""The docker command line at the nodes of a lab."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.integration.cluster.lab import Lab


def socket_of(lab: Lab, node: str) -> Path:
    """Where a node serves the Docker API."""
    return Path(lab.environment["SHOAL_LAB_DIR"]) / lab.name / node / "run" / "docker.sock"


def command(lab: Lab, node: str, *words: str) -> list[str]:
    """A docker command at a node."""
    return ["docker", "-H", f"unix://{socket_of(lab, node)}", *words]


def environment(lab: Lab) -> dict[str, str]:
    """What it runs in: nobody's own configuration is read."""
    return {**lab.environment, "DOCKER_CONFIG": str(lab.base / "docker")}


def docker(lab: Lab, node: str, *words: str, stdin: str = "") -> tuple[int, str, str]:
    """A docker command at a node: exit code, output, errors."""
    done = subprocess.run(
        command(lab, node, *words),
        capture_output=True, text=True, timeout=120, check=False, input=stdin,
        env=environment(lab),
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def output(lab: Lab, *words: str, stdin: str = "") -> str:
    """What a command at the manager prints; it must succeed."""
    code, out, err = docker(lab, "m1", *words, stdin=stdin)
    assert code == 0, err
    return out
