"""Beside Docker with a swarm of its own: both work at all times, and nothing of ours is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.coexistence.dockerd import CMD, DOCKER, DOCKERD, IMAGE, Dockerd, fetch
from tests.integration.coexistence.host import ADDRESS, CLIENT, Host, eventually
from tests.integration.coexistence.node import Node

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(DOCKER is None or DOCKERD is None, reason="dockerd is not installed"),
]
THEIRS, OURS = 9000, 9100


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
    before = host.quiet()
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
    assert host.changed(before) == {}
    assert docker.works(THEIRS)


@pytest.mark.skipif(os.environ.get("SHOAL_COEXISTENCE") != "all", reason="make test-coexistence")
def test_a_node_on_the_same_host_says_what_keeps_its_packets_from_passing(
    host: Host, docker: Dockerd
) -> None:
    before = host.quiet()
    node = Node(host)
    try:
        taken = node.said("init", "--advertise-addr", ADDRESS)
        assert "0.0.0.0:2377 cannot be used" in taken
        assert "--listen-addr" in taken
        node.init()
        node.serve("web", OURS)
        page = f"http://{ADDRESS}:{OURS}/cgi-bin/who"
        eventually("the node itself is answered", lambda: host.ask(page, outside=False))
        assert host.ask(page) == "", "Docker's FORWARD lets nobody through"
        what, remedy = node.problems()["firewall filter FORWARD"]
        assert "iptables: chain FORWARD of table ip filter drops requests to tasks" in what
        node.docker("network", "create", "our-local")
        node.docker(
            "run", "-d", "--name", "box", "--network", "our-local", "-p", f"{OURS + 1}:80", IMAGE
        )
        _, remedy = node.problems()["firewall filter FORWARD"]
        host.run("sh", "-ec", remedy)
        assert node.problems() == {}
        eventually("the client is answered", lambda: CLIENT in host.ask(page))
        local = f"http://{ADDRESS}:{OURS + 1}/cgi-bin/who"
        eventually("networks of the node work", lambda: CLIENT in host.ask(local))
        assert docker.works(THEIRS)

        node.run("service", "create", "--detach", "--name", "taken", "-p", f"{THEIRS}:80", IMAGE)
        told = f"port {THEIRS}/tcp is in use by another process on this node"
        form = "{{.Status.Message}}"
        eventually(told, lambda: told in node.run("node", "inspect", "host", "--format", form))
        assert docker.works(THEIRS)
        host.run("sh", "-ec", remedy.replace(" -I ", " -D "))
        node.docker("rm", "-f", "box")
        node.docker("network", "rm", "our-local")
    finally:
        node.close()
    changed = host.changed(before)
    _, groups = changed.pop("cgroups")
    assert {Path(group).name for group in groups} == {"ours"}, "the empty parent stays"
    # As documented: others may rely on it by then.
    time_out = "net.netfilter.nf_conntrack_tcp_timeout_time_wait"
    assert changed == {"settings": ({time_out: "120"}, {time_out: "30"})}
    assert docker.works(THEIRS)


def test_the_same_udp_port_for_both_data_paths_is_refused(host: Host, docker: Dockerd) -> None:
    node = Node(host)
    try:
        node.init("--data-path-port", "4789")
        eventually("it is said", lambda: "process worker" in node.problems())
        what, _ = node.problems()["process worker"]
        assert "data path port 4789/udp is in use by other software on this node" in what
        assert "--data-path-port" in what
        assert docker.works(THEIRS)
    finally:
        node.close()
