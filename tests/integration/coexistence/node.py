"""A node of a cluster of one, on a host of a test itself."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.integration.cluster.lab import root_file_system
from tests.integration.coexistence.dockerd import CMD, DOCKER, IMAGE
from tests.integration.coexistence.host import ADDRESS, Host, eventually

MANAGER_PORT = 2477
"""Not Docker's."""


class Node:
    """swarmd on the host; close it before its host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        base = Path(tempfile.mkdtemp(prefix="n", dir=host.base))
        self.run_dir = base / "run"
        self._process = host.start(
            "swarmd", sys.executable, "-P", "-m", "swarmd", "--state-dir", f"{base}/state",
            "--run-dir", str(self.run_dir), "--hostname", "host", "--metrics-addr", "",
            "--cgroup-parent", f"{host.cgroup}/ours",
        )  # fmt: skip
        eventually("swarmd answers", lambda: self.run("info", check=False) != "")

    def run(self, *words: str, check: bool = True) -> str:
        """Run swarmctl; its standard output."""
        where = ("-H", f"unix://{self.run_dir}/swarmd.sock")
        return self.host.swarmctl(*where, *words, check=check).stdout

    def said(self, *words: str) -> str:
        """What a command that fails complains of."""
        where = ("-H", f"unix://{self.run_dir}/swarmd.sock")
        done = self.host.swarmctl(*where, *words, check=False)
        assert done.returncode != 0, done
        return done.stderr

    def docker(self, *words: str) -> str:
        """Run docker against the node's own engine."""
        socket = f"unix://{self.run_dir}/docker.sock"
        return self.host.run(str(DOCKER), "-H", socket, *words).stdout.strip()

    def init(self, *words: str) -> None:
        """Make a cluster, and the image its services run."""
        at = ("--listen-addr", f"0.0.0.0:{MANAGER_PORT}")
        self.run("init", "--advertise-addr", f"{ADDRESS}:{MANAGER_PORT}", *at, *words)
        archive = str(self.host.base / "web.tar")
        if not Path(archive).exists():
            Path(archive).write_bytes(root_file_system())
        self.run("image", "import", archive, IMAGE, "--change", CMD)

    def serve(self, name: str, port: int) -> None:
        """A service that publishes a port."""
        self.run("service", "create", "--detach", "--name", name, "-p", f"{port}:80", IMAGE)
        eventually(f"{name} runs", lambda: self._runs(name))

    def problems(self) -> dict[str, tuple[str, str]]:
        """What `node doctor` calls a problem: by check, what it is and the remedy."""
        found = self.run("node", "doctor", "--format", "{{json .}}", check=False).splitlines()
        rows = [json.loads(line) for line in found]
        return {
            row["Check"]: (row["What"], row["Remedy"]) for row in rows if row["State"] == "problem"
        }

    def close(self) -> None:
        """Leave and end: nothing of the node stays."""
        self.run("leave", "--force", check=False)
        self._process.end()

    def _runs(self, name: str) -> bool:
        return "Running" in self.run("service", "ps", name, "--format", "{{.CurrentState}}")
