"""Networks of the swarm by the docker command line, and by docker-py."""

from __future__ import annotations

import json
import shutil

import docker as docker_py
import pytest
from docker.types import IPAMConfig, IPAMPool

from tests.integration.cluster.docker_cli import docker, output, socket_of
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]
DAEMON = "Error response from daemon:"


def inspected(lab: Lab, *words: str) -> dict:
    """A network, as the command prints it."""
    return json.loads(output(lab, "network", "inspect", *words))[0]


def test_overlay_networks_are_made_listed_inspected_and_removed(lab: Lab):
    output(lab, "network", "create", "-d", "overlay", "ov1")
    words = ("--attachable", "--internal", "--label", "a=b", "--subnet", "10.55.0.0/24")
    more = ("--gateway", "10.55.0.9", "--ip-range", "10.55.0.128/25", "--scope", "swarm")
    output(lab, "network", "create", "-d", "overlay", *words, *more, "ov2")
    try:
        listed = output(lab, "network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}")
        assert {"bridge bridge local", "ov1 overlay swarm", "ov2 overlay swarm"} <= set(
            listed.splitlines()
        )
        swarm = ("--filter", "scope=swarm", "--format", "{{.Name}}")
        assert output(lab, "network", "ls", *swarm) == "ov1\nov2\n"
        eventually("ov1 has a subnet", lambda: inspected(lab, "ov1")["IPAM"]["Config"])
        plain, given = inspected(lab, "ov1"), inspected(lab, "ov2")
        assert plain["IPAM"]["Config"][0].keys() == {"Subnet", "Gateway"}
        assert (plain["Labels"], plain["Containers"], plain["Attachable"]) == (None, None, False)
        assert given["IPAM"]["Config"] == [
            {"Subnet": "10.55.0.0/24", "IPRange": "10.55.0.128/25", "Gateway": "10.55.0.9"}
        ]
        assert (given["Labels"], given["Internal"], given["Attachable"]) == ({"a": "b"}, True, True)
        output(lab, "network", "prune", "-f")  # leaves the cluster's alone
        assert output(lab, "network", "ls", *swarm) == "ov1\nov2\n"
        for words, text in (
            (("create", "-d", "overlay", "ov1"), "network with name ov1 already exists"),
            (("create", "ov1"), "network with name ov1 already exists"),
            (("create", "-d", "overlay", "--subnet", "bad", "x"), "invalid CIDR address: bad"),
            (("create", "-d", "overlay", "--subnet", "10.55.0.0/24", "x"), "ov2"),
            (("create", "-d", "overlay", "--ingress", "x"), "the routing mesh is no network here"),
            (("create", "--scope", "swarm", "-d", "macvlan", "x"), "must be overlay"),
            (("create", "--scope", "local", "-d", "overlay", "x"), "invalid scope: local"),
            (("create", "-d", "overlay", "-o", "nosuch=1", "x"), "'nosuch' is unknown"),
            (("rm", "nosuch"), "network nosuch not found"),
        ):
            code, _, err = docker(lab, "m1", "network", *words)
            assert (code, err.startswith(DAEMON), text in err) == (1, True, True), err
    finally:
        output(lab, "network", "rm", "ov1", "ov2")
    assert output(lab, "network", "ls", *swarm) == ""


def test_a_network_says_who_uses_it_and_is_let_go_with_its_service(lab: Lab):
    output(lab, "network", "create", "-d", "overlay", "used")
    service = ("service", "create", "--name", "user", "--network", "used", "--replicas", "2")
    lab.swarmctl(*service, "-d", "--stop-grace-period", "2s", "-p", "8088:80", "web:1")
    try:
        code, _, err = docker(lab, "m1", "network", "rm", "used")
        assert code == 1
        assert "rpc error: code = FailedPrecondition desc = network used is in use by" in err
        eventually("both run", lambda: len(lab.running("user")) == 2)
        seen = inspected(lab, "--verbose", "used")
        on_it = seen["Services"]["user"]
        assert (on_it["VIP"] != "", on_it["Ports"]) == (True, ["Target: 80, Publish: 8088"])
        assert len(on_it["Tasks"]) == 2
        assert len(seen["Peers"]) == len({task["NodeID"] for task in lab.running("user")})
    finally:
        output(lab, "service", "rm", "user")
        output(lab, "network", "rm", "used")  # while its tasks are still ending
    assert output(lab, "network", "ls", "-q", "--filter", "name=used") == ""


def test_docker_py_makes_networks_of_the_swarm(lab: Lab):
    client = docker_py.DockerClient(
        base_url=f"unix://{socket_of(lab, 'm1')}", version="auto", timeout=60
    )
    pools = IPAMConfig(pool_configs=[IPAMPool(subnet="10.56.0.0/24")])
    made = client.networks.create("py", driver="overlay", attachable=True, ipam=pools)
    try:
        assert [one.id for one in client.networks.list(names=["py"])] == [made.id]
        made.reload()
        assert (made.attrs["Scope"], made.attrs["Driver"]) == ("swarm", "overlay")
        pool = {"Subnet": "10.56.0.0/24", "Gateway": "10.56.0.1"}
        eventually(
            "it has a gateway",
            lambda: client.networks.get(made.id).attrs["IPAM"]["Config"] == [pool],
        )
        assert client.networks.get(made.id, verbose=True).attrs["Services"] == {}
    finally:
        made.remove()
        client.close()
