"""A real lab driven by the real command line, and the little web image its services run."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

DEADLINE_S = 40.0
LOG_LINES = 40

# Answers with the container and the client it sees, and logs the client.
_PAGE = """#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "$(/bin/hostname) $REMOTE_ADDR"
echo "asked by $REMOTE_ADDR" >&2
"""
_APPLETS = ("sh", "httpd", "hostname", "cat", "echo", "sleep", "ls", "head", "kill", "wget")

T = TypeVar("T")


def root_file_system() -> bytes:
    """A tar of busybox with a CGI page that names the container and the client."""
    busybox = Path("/bin/busybox").read_bytes()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:

        def add(name: str, data: bytes, mode: int) -> None:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))

        for directory in ("bin", "etc", "tmp", "www", "www/cgi-bin"):
            entry = tarfile.TarInfo(directory)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        add("bin/busybox", busybox, 0o755)
        for applet in _APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        add("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n", 0o644)
        add("www/cgi-bin/who", _PAGE.encode(), 0o755)
    return buffer.getvalue()


class Lab:
    """One lab; every method is what a user would type."""

    def __init__(self, name: str, base: Path) -> None:
        self.name = name
        self.base = base
        self.environment = {
            **os.environ,
            "SHOAL_CONFIG_DIR": str(base / "config"),
            "SHOAL_LAB_DIR": str(base / "lab"),
            "NO_COLOR": "1",
        }
        self.environment.pop("SWARM_HOST", None)
        self.addresses: dict[str, str] = {}

    def up(self, *, workers: int, managers: int = 1, store: str = "") -> None:
        """Raise it, with the web image on every node."""
        self.swarmctl(
            "lab", "up", "--name", self.name,
            "--managers", str(managers), "--workers", str(workers),
            *(["--store", store] if store else []),
        )  # fmt: skip
        shown = self.swarmctl(
            "lab", "ps", "--name", self.name, "--format", "{{.Name}} {{.Address}} {{.Role}}"
        )
        lines = [line.split() for line in shown.splitlines()]
        self.addresses = {name: address for name, address, role in lines if role != "store"}
        archive = self.base / "web.tar"
        archive.write_bytes(root_file_system())
        command = 'CMD ["httpd","-f","-p","80","-h","/www"]'
        self.swarmctl("image", "import", str(archive), "web:1", "--change", command)

    def down(self) -> None:
        """Take it down."""
        self.swarmctl("lab", "down", "--name", self.name)

    def swarmctl(self, *arguments: str, check: bool = True) -> str:
        """Run a command; its standard output."""
        return self.run(*arguments, check=check).stdout

    def run(
        self, *arguments: str, check: bool = True, timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        result = subprocess.run(
            [sys.executable, "-P", "-m", "swarmctl", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check and result.returncode != 0:
            raise AssertionError(
                f"swarmctl {' '.join(arguments)}: exit {result.returncode}\n{result.stderr}"
            )
        return result

    def last_words(self) -> dict[str, str]:
        """The end of each node's log."""
        logs = sorted((self.base / "lab" / self.name).glob("*/swarmd.log"))
        return {
            path.parent.name: "\n".join(path.read_text(errors="replace").splitlines()[-LOG_LINES:])
            for path in logs
        }

    def lab(self, verb: str, *arguments: str) -> None:
        """`swarmctl lab VERB --name ... ARGUMENTS`."""
        self.swarmctl("lab", verb, "--name", self.name, *arguments)

    def tasks(self, service: str) -> list[dict[str, Any]]:
        """Tasks of a service as `task inspect` shows them, history included."""
        ids = self.swarmctl("service", "ps", service, "--quiet", "--no-trunc").split()
        if not ids:
            return []
        # A task may be gone by now: the others are printed all the same.
        return json.loads(self.swarmctl("task", "inspect", *ids, check=False) or "[]")

    def running(self, service: str) -> list[dict[str, Any]]:
        """Tasks that run and are wanted."""
        return [
            task
            for task in self.tasks(service)
            if task["Status"]["State"] == "running" and task["DesiredState"] == "running"
        ]

    def node_states(self) -> dict[str, str]:
        """State of each node by hostname."""
        shown = self.swarmctl("node", "ls", "--format", "{{.Hostname}} {{.Status}}")
        return dict(line.split() for line in shown.splitlines())

    def socket(self, node: str) -> str:
        """Host of a node's own daemon, for `-H`."""
        return f"unix://{self.base}/lab/{self.name}/{node}/run/swarmd.sock"

    def ask(self, node: str, port: int) -> tuple[str, str]:
        """Fetch the page through a node. Result: the container's host name, the client it saw."""
        with socket.create_connection((self.addresses[node], port), timeout=5) as connection:
            connection.sendall(b"GET /cgi-bin/who HTTP/1.0\r\n\r\n")
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
        container, client = answer.decode().split()[-2:]
        return container, client.strip("[]").removeprefix("::ffff:")

    def own_address(self, node: str) -> str:
        """This machine's address as the node sees it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.addresses[node], 9))
            return str(probe.getsockname()[0])


def eventually(what: str, probe: Callable[[], T], *, deadline_s: float = DEADLINE_S) -> T:
    """Poll until the result is true. Raises AssertionError with the last result."""
    end = time.monotonic() + deadline_s
    while True:
        result = probe()
        if result:
            return result
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {deadline_s:g} s, last seen {result!r}")
        time.sleep(0.1)
