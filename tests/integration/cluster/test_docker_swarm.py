"""The swarm itself by the docker command line: nodes leave and join, its root is replaced."""

from __future__ import annotations

import shutil

import docker as docker_py
import pytest

from tests.integration.cluster.docker_cli import docker, output, socket_of
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


def test_docker_py_changes_nodes_and_the_swarm(lab: Lab):
    client = docker_py.DockerClient(
        base_url=f"unix://{socket_of(lab, 'm1')}", version="auto", timeout=60
    )
    try:
        node = client.nodes.list(filters={"name": "w1"})[0]
        assert client.nodes.get(node.id).version == node.version
        spec = node.attrs["Spec"]
        assert node.update({**spec, "Labels": {"by": "py"}})
        with pytest.raises(docker_py.errors.APIError, match="update out of sequence"):
            node.update({**spec, "Labels": {}})  # of the version that it was read at
        node.reload()
        assert node.attrs["Spec"]["Labels"] == {"by": "py"}
        assert node.update(spec)

        swarm = client.swarm
        before = swarm.attrs["JoinTokens"]
        assert swarm.update(rotate_worker_token=True, task_history_retention_limit=7)
        swarm.reload()
        assert swarm.attrs["Spec"]["Orchestration"] == {"TaskHistoryRetentionLimit": 7}
        assert swarm.attrs["JoinTokens"]["Manager"] == before["Manager"]
        assert swarm.attrs["JoinTokens"]["Worker"] != before["Worker"]
        assert swarm.update(task_history_retention_limit=5)
        assert swarm.get_unlock_key() == {"UnlockKey": ""}
        for call, text in (
            (lambda: swarm.init(advertise_addr="127.0.0.1"), "already part of a swarm"),
            (lambda: swarm.leave(), "participating as a manager"),
            (lambda: swarm.unlock("SWMKEY-1-x"), "swarm is not locked"),
        ):
            with pytest.raises(docker_py.errors.APIError, match=text):
                call()
    finally:
        client.close()
