"""The swarm itself by the docker command line: nodes leave and join, its root is replaced."""

from __future__ import annotations

import shutil

import pytest

from tests.integration.cluster.docker_cli import docker, output
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]


def states(lab: Lab) -> dict[str, str]:
    """State of each node by hostname; of two with one name, the one that is down."""
    shown = output(lab, "node", "ls", "--format", "{{.Hostname}} {{.Status}}").splitlines()
    return dict(sorted((line.split()[0], line.split()[1]) for line in shown)[::-1])


def test_the_root_is_replaced_without_a_node_that_has_left(lab: Lab):
    old = output(lab, "swarm", "join-token", "-q", "worker")
    assert docker(lab, "w2", "swarm", "leave") == (0, "Node left the swarm.\n", "")
    try:
        assert states(lab)["w2"] == "Down"
        gone = output(lab, "node", "inspect", "w2", "--format", "{{.Status.Message}}")
        assert gone == "the node has left the cluster\n"
        output(lab, "swarm", "ca", "--rotate", "--quiet")  # returns when it is done
    finally:
        token = output(lab, "swarm", "join-token", "-q", "worker").strip()
        manager = f"{lab.addresses['m1']}:2377"
        code, _, err = docker(lab, "w2", "swarm", "join", "--token", token, manager)
        assert code == 0, err
        output(lab, "node", "rm", gone_id(lab))
    assert token != old.strip()
    eventually("all work", lambda: states(lab) == dict.fromkeys(("m1", "w1", "w2"), "Ready"))


def gone_id(lab: Lab) -> str:
    """Of the node that has left."""
    shown = output(lab, "node", "ls", "--format", "{{.ID}} {{.Status}}").splitlines()
    return next(line.split()[0] for line in shown if line.endswith("Down"))


def test_a_manager_leaves_only_by_force(lab: Lab):
    code, _, err = docker(lab, "m1", "swarm", "leave")
    assert (code, "participating as a manager" in err) == (1, True), err
    code, _, err = docker(lab, "m1", "swarm", "join-token", "bad")
    assert (code, "unknown role bad" in err) == (1, True), err
