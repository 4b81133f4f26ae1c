"""The docker command line against the nodes of a lab."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import docker as docker_py
import pytest

from tests.integration.cluster.docker_cli import docker, output
from tests.integration.cluster.lab import Lab, eventually

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]
WORKERS = "Worker nodes can't be used to view or modify cluster state."


def test_nodes_are_listed_changed_and_kept(lab: Lab):
    names = output(lab, "node", "ls", "--format", "{{.Hostname}} {{.ManagerStatus}}").splitlines()
    assert sorted(names) == ["m1 Leader", "w1 ", "w2 "]
    assert output(lab, "node", "inspect", "self", "--format", "{{.Description.Hostname}}") == "m1\n"
    output(lab, "node", "update", "--label-add", "rack=r1", "--availability", "pause", "w1")
    shown = json.loads(output(lab, "node", "inspect", "w1", "--format", "{{json .Spec}}"))
    assert shown == {"Labels": {"rack": "r1"}, "Role": "worker", "Availability": "pause"}
    output(lab, "node", "update", "--label-rm", "rack", "--availability", "active", "w1")
    listed = output(lab, "node", "ls", "-q", "--filter", "role=manager", "--filter", "name=m")
    assert len(listed.split()) == 1
    for words, text in {
        ("node", "ls", "--filter", "bad=1"): "Invalid filter 'bad'",
        ("node", "inspect", "nosuch"): "node nosuch not found",
        ("node", "rm", "w1"): "is not down and can't be removed",
        ("node", "demote", "m1"): "attempting to demote the last manager",
    }.items():
        code, _, err = docker(lab, "m1", *words)
        assert (code, text in err) == (1, True), err


def test_the_swarm_s_settings_come_back_as_they_were(lab: Lab):
    before = lab.swarmctl("cluster", "inspect")
    output(lab, "swarm", "update", "--task-history-limit", "3")
    assert "Limit: 3" in output(lab, "info")
    output(lab, "swarm", "update", "--task-history-limit", "5")
    spec = json.loads(lab.swarmctl("cluster", "inspect"))[0]["Spec"]
    old = json.loads(before)[0]["Spec"]
    assert {**spec, "Orchestration": None} == {**old, "Orchestration": None}


def test_join_tokens_and_unlock_keys(lab: Lab):
    token = output(lab, "swarm", "join-token", "-q", "worker")
    assert token.startswith("SWMTKN-1-")
    assert output(lab, "swarm", "join-token", "--rotate", "-q", "worker") != token
    output(lab, "swarm", "update", "--autolock=true")
    assert output(lab, "swarm", "unlock-key", "-q").startswith("SWMKEY-1-")
    output(lab, "swarm", "update", "--autolock=false")
    assert "no unlock key is set" in docker(lab, "m1", "swarm", "unlock-key", "-q")[2]


def test_a_worker_says_that_it_is_none_and_a_member_joins_no_other(lab: Lab):
    for words in (("node", "ls"), ("service", "ls"), ("swarm", "ca"), ("secret", "ls")):
        code, _, err = docker(lab, "w1", *words)
        assert (code, WORKERS in err) == (1, True), err
    for words in (("swarm", "init"), ("swarm", "join", "--token", "SWMTKN-1-xx", "10.0.0.1:2377")):
        code, _, err = docker(lab, "w1", *words)
        assert (code, "already part of a swarm" in err) == (1, True), err
    state = output(lab, "info", "--format", "{{.Swarm.Nodes}} {{.Swarm.Managers}}")
    assert state == "3 1\n"


def test_promotion_and_demotion(lab: Lab):
    output(lab, "node", "promote", "w2")
    try:
        role = ("node", "ls", "--filter", "name=w2", "--format", "{{.ManagerStatus}}")
        eventually("w2 manages", lambda: output(lab, *role).strip() == "Reachable")
    finally:
        output(lab, "node", "demote", "w2")
    eventually("w2 works", lambda: output(lab, *role).strip() == "")


def test_services_and_tasks_are_seen_gone_back_with_and_removed(lab: Lab):
    lab.swarmctl("service", "create", "--name", "cli", "--replicas", "2", "web:1")
    try:
        assert output(lab, "service", "ls", "--format", "{{.Name}} {{.Replicas}}") == "cli 2/2\n"
        assert output(lab, "service", "ls", "-q", "--filter", "mode=global") == ""
        state = ("--format", "{{.Image}} {{.DesiredState}}")
        shown = output(lab, "service", "ps", "cli", *state, "--filter", "desired-state=running")
        assert shown == "web:1 Running\n" * 2
        assert "Replicas:\t2" in output(lab, "service", "inspect", "--pretty", "cli").replace(
            " ", ""
        )
        task = lab.running("cli")[0]
        where = output(lab, "inspect", "--type", "task", task["ID"], "--format", "{{.NodeID}}")
        assert where.strip() == task["NodeID"]
        assert task["ID"] in output(lab, "node", "ps", "-q", "--no-trunc", task["NodeID"])
        lab.swarmctl("service", "update", "--replicas", "1", "cli")
        output(lab, "service", "rollback", "cli")  # attached: it converges and ends
        assert output(lab, "service", "ls", "--format", "{{.Replicas}}") == "2/2\n"
        for words, text in {
            ("service", "inspect", "nosuch"): "no such service: nosuch",
            ("service", "ls", "--filter", "bad=1"): "Invalid filter 'bad'",
        }.items():
            code, _, err = docker(lab, "m1", *words)
            assert (code, text in err) == (1, True), err
    finally:
        output(lab, "service", "rm", "cli")
    assert output(lab, "service", "ls", "-q") == ""


def test_logs_of_services_and_tasks(lab: Lab):
    script = "echo out; echo err >&2; sleep 1000"
    lab.swarmctl(
        "service", "create", "--name", "says", "--replicas", "2", "web:1", "sh", "-c", script
    )
    try:
        code, out, err = docker(lab, "m1", "service", "logs", "says")
        assert code == 0
        said = [line.partition("|")[2].strip() for line in (*out.splitlines(), *err.splitlines())]
        assert said == ["out", "out", "err", "err"]
        assert {line.partition(".")[0] for line in out.splitlines()} == {"says"}
        task = lab.running("says")[0]["ID"]
        assert docker(lab, "m1", "service", "logs", "--raw", task) == (0, "out\n", "err\n")
        stamped = output(lab, "service", "logs", "--raw", "--timestamps", "--tail", "2", task)
        assert stamped.endswith("Z out\n")
    finally:
        output(lab, "service", "rm", "says")


def test_a_worker_makes_no_network_of_the_swarm(lab: Lab):
    code, _, err = docker(lab, "w1", "network", "create", "-d", "overlay", "ov")
    assert (code, WORKERS in err) == (1, True), err


def test_docker_py_sees_the_swarm(lab: Lab):
    socket = Path(lab.environment["SHOAL_LAB_DIR"]) / lab.name / "m1" / "run" / "docker.sock"
    lab.swarmctl("service", "create", "--name", "seen", "web:1")
    client = docker_py.DockerClient(base_url=f"unix://{socket}", version="auto", timeout=60)
    try:
        assert client.swarm.attrs["JoinTokens"]["Worker"].startswith("SWMTKN-1-")
        assert [
            node.attrs["Description"]["Hostname"]
            for node in client.nodes.list(filters={"role": "manager"})
        ] == ["m1"]
        service = client.services.get("seen")
        assert [
            task["Status"]["State"] for task in service.tasks({"desired-state": "running"})
        ] == ["running"]
        service.remove()
        assert client.services.list(filters={"name": "seen"}) == []
    finally:
        client.close()
        lab.swarmctl("service", "rm", "seen", check=False)
