"""The lab that is compared: three managers and two workers, with the recordings' images."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_address
from pathlib import Path

from swarmctl.lab.kernel import NETNS_DIR
from swarmctl.lab.plan import netns_name
from tests.conformance.comparing import run
from tests.conformance.images import busybox
from tests.integration.cluster.lab import Lab
from tests.support.registry import a_registry

MANAGERS, WORKERS = 3, 2
IMAGES = ("bb:1", "127.0.0.1:5000/lib/bb:v1")
_CHANGE = 'CMD ["sh"]'

_WORDS = """at() { docker -H unix://$NODES/$1/run/docker.sock "${@:2}"; }
lab() { "$PYTHON" -P -m swarmctl lab "$1" --name "$LAB" "${@:2}"; }
until_() { for _ in $(seq 400); do eval "$1" >/dev/null 2>&1 && return; sleep 0.1; done; false; }
task() { docker service ps -q --no-trunc --filter name=$1 ${1%.*} | head -n 1; }
where() { docker service ps --filter name=$1 --format '{{.Node}}' ${1%.*} | head -n 1; }
"""
"""`at NODE WORD ...`: docker at another node; `lab VERB NODE`; `until_ LINE`: tried again until it
succeeds; `task SLOT`, `where SLOT`: the newest task of a slot, and its node."""


class Site:
    """A lab, and bash with docker at any of its nodes."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.scratch = lab.base / "scratch"
        self.scratch.mkdir()
        self.version = ""

    def directory(self, node: str) -> Path:
        """Where a node keeps what it has."""
        return self.lab.base / "lab" / self.lab.name / node

    def bash(self, node: str, command: str, given: str = "") -> tuple[int, str, str]:
        """A line of bash with docker at a node, and `_WORDS`."""
        return run(
            _WORDS + command,
            given=given,
            cwd=self.scratch,
            environment={
                **self.lab.environment,
                "NODES": str(self.directory("")),
                "HERE": self.lab.addresses[node],
                "LAB": self.lab.name,
                "PYTHON": sys.executable,
                "HOME": str(self.scratch),
                "DOCKER_CONFIG": str(self.lab.base / "docker"),
                "DOCKER_HOST": f"unix://{self.directory(node)}/run/docker.sock",
                "DOCKER_API_VERSION": "1.41",
            },
        )

    def ok(self, node: str, command: str, given: str = "") -> str:
        """What a line prints; it must succeed."""
        code, out, err = self.bash(node, command, given)
        assert code == 0, f"{command}: exit {code}\n{out}\n{err}"
        return out.strip()


@contextmanager
def a_site() -> Iterator[Site]:
    """The lab while it is up; each node finds the one registry on its port 5000."""
    base = Path(tempfile.mkdtemp(prefix="shoal-conformance-"))
    lab = Lab(f"conf{os.getpid()}", base)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, base, ignore_errors=True)
        stack.callback(lab.down)
        lab.up(managers=MANAGERS, workers=WORKERS)
        for node in lab.addresses:
            inside = ["nsenter", f"--net={NETNS_DIR}/{netns_name(lab.name, node)}", "--"]
            _without_names(inside)
            stack.enter_context(a_registry(base / "registry", inside=inside, port=5000))
        site = Site(lab)
        archive = base / "busybox.tar"
        archive.write_bytes(busybox())
        for name in ("busybox", *IMAGES):
            lab.swarmctl("image", "import", str(archive), name, "--change", _CHANGE)
        site.ok("m1", f"docker push -q {IMAGES[1]}")
        site.version = site.ok("m1", "docker version --format '{{.Server.Version}}'")
        yield site


def _without_names(inside: list[str]) -> None:
    """Let a node's questions for names fail at once, and not after ten seconds."""
    for line in Path("/etc/resolv.conf").read_text().splitlines():
        word, _, server = line.partition(" ")
        if word == "nameserver" and not ip_address(server.strip()).is_loopback:
            route = ["ip", "route", "add", "unreachable", server.strip()]
            subprocess.run([*inside, *route], check=False, capture_output=True)
