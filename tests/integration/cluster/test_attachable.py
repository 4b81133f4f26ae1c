"""Containers made through a node's Docker API on attachable networks of a real cluster."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any
from urllib.request import urlopen

import pytest

from tests.integration.cluster.lab import Lab, eventually
from tests.integration.cluster.test_detection import events, node_ids, worker_pid
from tests.integration.cluster.test_overlay import ask, look_up

DOCKER = shutil.which("docker")
DEADLINE_S = 60.0
HTTPD = ("web:1", "httpd", "-f", "-h", "/www")

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(300),
    pytest.mark.skipif(DOCKER is None, reason="the docker command line is missing"),
]


class Engines:
    """The docker command line, against the nodes of a lab."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def run(self, node: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        socket = self._lab.base / "lab" / self._lab.name / node / "run" / "docker.sock"
        assert DOCKER is not None
        return subprocess.run(
            [DOCKER, "-H", f"unix://{socket}", *arguments],
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
            env={"PATH": os.environ["PATH"], "HOME": str(self._lab.base)},
        )  # fmt: skip

    def __call__(self, node: str, *arguments: str) -> str:
        done = self.run(node, *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def address(self, node: str, container: str, network: str) -> str:
        """Of a container on a network, as `docker inspect` shows it."""
        (shown,) = json.loads(self(node, "inspect", container))
        return str(shown["NetworkSettings"]["Networks"][network]["IPAddress"])

    def inside(self, node: str, container: str) -> dict[str, Any]:
        """The container as `look_up` and `ask` know a task."""
        pid = int(self(node, "inspect", "-f", "{{.State.Pid}}", container))
        return {"Status": {"ContainerStatus": {"PID": pid}}}

    def finds(self, node: str, container: str, name: str) -> list[str]:
        """What the container's resolver says; nothing: nobody is called that."""
        found = look_up(self.inside(node, container), name)
        return [] if found == ["NXDOMAIN"] else found


@pytest.fixture
def engines(lab: Lab) -> Iterator[Engines]:
    made = Engines(lab)
    yield made
    for node in lab.addresses:
        containers = made.run(node, "ps", "-aq", "--filter", "label=test=attachable")
        for container in containers.stdout.split():
            made.run(node, "rm", "-f", container)
    lab.swarmctl("service", "rm", "web", check=False)
    for name in ("open", "shut", "inside"):
        if name in lab.swarmctl("network", "ls", "--format", "{{.Name}}").split():
            eventually(
                "the network is removed",
                lambda name=name: lab.run("network", "rm", name, check=False).returncode == 0,
            )


def answered(asking: dict[str, Any], address: str) -> tuple[str, str]:
    """Who answers there once his server listens, and which client he sees."""

    def once() -> tuple[str, str] | None:
        try:
            return ask(asking, address)
        except OSError:
            return None

    return eventually(f"{address} answers", once)


def metrics(lab: Lab, node: str) -> str:
    """The node's page of metrics."""
    with urlopen(f"http://{lab.addresses[node]}:9323/metrics", timeout=20) as page:
        return str(page.read().decode())


def test_containers_and_services_find_each_other_on_an_attachable_network(
    lab: Lab, engines: Engines
) -> None:
    lab.swarmctl("network", "create", "--attachable", "--subnet", "10.77.1.0/24", "open")
    lab.swarmctl("network", "create", "shut")
    lab.swarmctl("service", "create", "--detach", "--name", "web", "--network", "open", "web:1")
    (web,) = eventually("the service runs", lambda: lab.running("web"))

    listed = engines("w1", "network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}")
    assert "open overlay swarm" in listed.splitlines()
    assert "shut" not in listed, "a worker does not know what is not for it"
    assert "shut overlay swarm" in engines("m1", "network", "ls", "--format",
                                           "{{.Name}} {{.Driver}} {{.Scope}}")  # fmt: skip

    label = ("--label", "test=attachable")
    engines("w1", "run", "-d", *label, "--name", "box", "--network", "open",
            "--network-alias", "friend", "-p", "8097:80", *HTTPD)  # fmt: skip
    engines("w2", "run", "-d", *label, "--name", "peer", "--network", "open",
            "--ip", "10.77.1.99", *HTTPD)  # fmt: skip
    box, peer = engines.address("w1", "box", "open"), engines.address("w2", "peer", "open")
    assert peer == "10.77.1.99"
    for name in ("box", "friend", "box.open"):
        found = eventually(f"{name} is known", lambda name=name: engines.finds("w2", "peer", name))
        assert found == [box]
    asking = engines.inside("w2", "peer")
    assert answered(asking, box) == (engines("w1", "exec", "box", "hostname"), peer)
    (vip,) = engines.finds("w2", "peer", "web")
    assert answered(asking, vip) == (web["ID"][:12], peer)
    assert eventually("the task knows it", lambda: look_up(web, "friend")) == [box]
    assert answered(web, box)[0] == engines("w1", "exec", "box", "hostname")
    assert lab.ask("w1", 8097)[0], "its published port leads to it"  # it listens by now
    (shown,) = json.loads(engines("w1", "network", "inspect", "open"))
    assert [one["IPv4Address"] for one in shown["Containers"].values()] == [f"{box}/24"]

    places = 1 + (web["NodeID"] == node_ids(lab)["w2"])
    assert f"shoal_overlay_places {places}.0" in metrics(lab, "w2").splitlines()
    assert 'shoal_dispatcher_overlay_rows{kind="endpoint"} 3.0' in metrics(lab, "m1")
    _refused(engines, label)
    _survives_its_worker(lab, engines, box)
    _leaves_and_comes_back(engines)
    refused = lab.run("network", "rm", "open", check=False)
    assert "network open is in use by service web, container " in refused.stderr
    engines("w1", "rm", "-f", "box")
    engines("w2", "rm", "-f", "peer")
    lab.swarmctl("service", "rm", "web")
    eventually("it is free", lambda: not lab.run("network", "rm", "open", check=False).returncode)


def _refused(engines: Engines, label: tuple[str, ...]) -> None:
    done = engines.run("w1", "run", "--rm", *label, "--network", "shut", *HTTPD)
    assert (done.returncode, "network shut not found" in done.stderr) == (125, True), done.stderr
    done = engines.run("m1", "run", "--rm", *label, "--network", "shut", *HTTPD)
    assert done.returncode == 125
    assert (
        "Could not attach to network shut: rpc error: code = PermissionDenied desc = "
        "network shut not manually attachable"
    ) in done.stderr
    done = engines.run(
        "w1", "run", "--rm", *label, "--network", "open", "--ip", "10.78.1.9", *HTTPD
    )
    assert "10.78.1.9 must be an address of a host in 10.77.1.0/24" in done.stderr
    done = engines.run("w1", "run", "--rm", *label, "--network", "open", "--ip", "10.77.1.99",
                       *HTTPD)  # fmt: skip
    assert "10.77.1.99 is in use by container peer" in done.stderr
    assert engines("w1", "ps", "-aq", "--filter", "label=test=attachable").count("\n") == 0


def _survives_its_worker(lab: Lab, engines: Engines, address: str) -> None:
    """Nothing that runs is touched, and it is given back all the same when it ends."""
    sessions = events(lab, "node.registered")
    os.kill(worker_pid(lab, "w1"), signal.SIGKILL)
    eventually("it has a new session", lambda: events(lab, "node.registered") > sessions)
    asking = engines.inside("w2", "peer")
    assert answered(asking, address)
    eventually("the engine is back", lambda: not engines.run("w1", "ps").returncode)
    assert engines.address("w1", "box", "open") == address
    assert engines.finds("w2", "peer", "friend") == [address]
    assert eventually("it asks", lambda: engines.finds("w1", "box", "peer")) == ["10.77.1.99"]
    (vip,) = engines.finds("w1", "box", "web")
    assert answered(engines.inside("w1", "box"), vip)[1] == address


def _leaves_and_comes_back(engines: Engines) -> None:
    engines("w1", "network", "disconnect", "open", "box")
    eventually("it is forgotten", lambda: not engines.finds("w2", "peer", "friend"))
    assert "open" not in engines("w1", "inspect", "-f", "{{json .NetworkSettings.Networks}}", "box")
    engines("w1", "network", "connect", "--alias", "again", "--ip", "10.77.1.50", "open", "box")
    assert engines.address("w1", "box", "open") == "10.77.1.50"
    known = eventually("it is back", lambda: engines.finds("w2", "peer", "again"))
    assert known == ["10.77.1.50"]
    assert answered(engines.inside("w1", "box"), "10.77.1.99")[1] == "10.77.1.50"
    eventually("it asks", lambda: engines.finds("w1", "box", "peer"))
    engines("w1", "restart", "-t", "0", "box")
    known = eventually("it is there again", lambda: engines.finds("w2", "peer", "again"))
    assert known == ["10.77.1.50"], "it has asked for this address"
    assert answered(engines.inside("w2", "peer"), "10.77.1.50")[1] == "10.77.1.99"


def test_a_container_on_an_internal_network_has_no_way_out(lab: Lab, engines: Engines) -> None:
    lab.swarmctl("network", "create", "--attachable", "--internal", "inside")
    engines("w1", "run", "-d", "--label", "test=attachable", "--name", "box", "--network",
            "inside", *HTTPD)  # fmt: skip
    routes = engines("w1", "exec", "box", "cat", "/proc/net/route").splitlines()[1:]
    assert [line.split()[:2] for line in routes], routes
    assert all(line.split()[1] != "00000000" for line in routes), "no default route"
    engines("w1", "run", "-d", "--label", "test=attachable", "--name", "open-too", "--network",
            "bridge", *HTTPD)  # fmt: skip
    engines("w1", "network", "connect", "inside", "open-too")
    found = eventually("it is known", lambda: engines.finds("w1", "open-too", "box"))
    assert answered(engines.inside("w1", "open-too"), found[0])
