"""Debian's dockerd on a host of a test: a swarm of its own, with services and networks."""

from __future__ import annotations

import shutil
import subprocess

from tests.integration.cluster.lab import root_file_system
from tests.integration.coexistence.host import ADDRESS, Host, eventually

DOCKER, DOCKERD = shutil.which("docker"), shutil.which("dockerd", path="/usr/sbin:/usr/bin:/sbin")
IMAGE = "web:1"
CMD = 'CMD ["httpd","-f","-p","80","-h","/www"]'

_FETCH = r"""
found=$(busybox nslookup "$1" 127.0.0.11 |
  busybox awk '/^Address/ { last = $NF } END { print last }')
printf 'GET /cgi-bin/who HTTP/1.0\r\n\r\n' | busybox nc -w 5 "$found" 80 | busybox tail -n 1
"""


def fetch(name: str) -> tuple[str, ...]:
    """The command with which a container of `IMAGE` fetches a page of whoever has that name.

    Debian's busybox is linked statically: its wget cannot ask a resolver.
    """
    return ("sh", "-c", _FETCH, "sh", name)


class Dockerd:
    """Close it before its host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.url = f"unix://{host.base}/docker.sock"
        self._process = host.start(
            "dockerd", str(DOCKERD), "--data-root", f"{host.base}/docker",
            "--exec-root", "/run/docker", "--pidfile", "/run/dockerd.pid", "--host", self.url,
            "--cgroup-parent", host.cgroup,
        )  # fmt: skip
        eventually("dockerd answers", lambda: self.run("version", check=False).returncode == 0)
        archive = host.base / "web.tar"
        archive.write_bytes(root_file_system())
        self("import", "--change", CMD, str(archive), IMAGE)

    def __call__(self, *words: str) -> str:
        """Run docker; its output."""
        return self.run(*words).stdout.strip()

    def run(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run docker."""
        return self.host.run(str(DOCKER), "-H", self.url, *words, check=check)

    def settle(self, published: int) -> None:
        """A swarm, an overlay network, a published service and a network of the node.

        Ports: `published` of the service's task, the next one of a container of the node. The
        service's is in host mode and its name is its tasks': this kernel need not have IPVS.
        """
        self("swarm", "init", "--advertise-addr", ADDRESS)
        self("network", "create", "-d", "overlay", "--attachable", "theirs")
        self(
            "service", "create", "--detach", "--name", "their-web", "--network", "theirs",
            "--endpoint-mode", "dnsrr", "--no-resolve-image",
            "--publish", f"mode=host,published={published},target=80", IMAGE,
        )  # fmt: skip
        self("network", "create", "their-local")
        self(
            "run", "-d", "--name", "their-box", "--network", "their-local",
            "-p", f"{published + 1}:80", IMAGE,
        )  # fmt: skip

    def works(self, published: int) -> bool:
        """Whether all of it does: from outside, over the overlay network, and on the node's."""
        pages = [f"http://{ADDRESS}:{port}/cgi-bin/who" for port in (published, published + 1)]
        return all(map(self.host.ask, pages)) and all(
            self.run("run", "--rm", "--network", network, IMAGE, *fetch(name), check=False).stdout
            for network, name in (("theirs", "their-web"), ("their-local", "their-box"))
        )

    def close(self) -> None:
        """End it in order; what it leaves ends with the host."""
        self("swarm", "leave", "--force")
        self._process.end()
