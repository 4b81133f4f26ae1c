"""Beside Docker with a swarm of its own: both work, before, during and after, and nothing is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.coexistence.dockerd import CMD, DOCKER, DOCKERD, IMAGE, Dockerd, fetch
from tests.integration.coexistence.host import ADDRESS, Host, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(DOCKER is None or DOCKERD is None, reason="dockerd is not installed"),
]
THEIRS = 9000


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def docker(host: Host) -> Iterator[Dockerd]:
    made = Dockerd(host)
    try:
        made.settle(THEIRS)
        eventually("Docker works", lambda: made.works(THEIRS))
        yield made
    finally:
        made.close()


def test_a_lab_comes_and_goes_beside_docker_and_both_work(host: Host, docker: Dockerd) -> None:
    assert ":FORWARD DROP" in host.run("iptables-save").stdout
    before = host.picture()
    host.swarmctl("lab", "up", "--name", host.name, "--workers", "1")
    try:
        form = "{{.Address}} {{.DockerSocket}}"
        shown = host.swarmctl("lab", "ps", "--name", host.name, "--format", form).stdout
        (m1, socket), (w1, _) = (line.split() for line in shown.splitlines())
        host.swarmctl("image", "import", str(host.base / "web.tar"), IMAGE, "--change", CMD)
        host.swarmctl("network", "create", "--driver", "overlay", "ours")
        host.swarmctl(
            "service", "create", "--detach", "--name", "web", "--network", "ours",
            "--replicas", "2", "--publish", f"{THEIRS}:80", IMAGE,
        )  # fmt: skip
        for address in (m1, w1):
            page = f"http://{address}:{THEIRS}/cgi-bin/who"
            eventually(page, lambda page=page: host.ask(page, outside=False))
        ours = (str(DOCKER), "-H", f"unix://{socket}")
        host.run(*ours, "network", "create", "our-local")
        host.run(
            *ours, "run", "-d", "--name", "box", "--network", "our-local", "-p", "9001:80", IMAGE
        )
        page = f"http://{m1}:9001/cgi-bin/who"
        eventually(page, lambda: host.ask(page, outside=False))
        host.run(*ours, "run", "--rm", "--network", "our-local", IMAGE, *fetch("box"))
        label = "label=com.docker.swarm.service.name=web"
        task = host.run(*ours, "ps", "-q", "--filter", label).stdout.split()[0]
        host.run(*ours, "exec", task, *fetch("web"))
        assert docker.works(THEIRS)
    finally:
        host.swarmctl("lab", "down", "--name", host.name)
    assert host.picture() == before
    assert docker.works(THEIRS)
