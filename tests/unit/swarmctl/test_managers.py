"""Roles of nodes, settings of the cluster, and contexts with several managers."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shoal.api.v1 import control_pb2, node_pb2
from shoal.model.enums import NodeRole, PlacementStrategy
from shoal.model.specs import NodeSpec
from shoal.model.types import ManagerStatus
from swarmctl import contexts
from swarmctl.contexts import Context
from swarmctl.render.rows import node_row
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.fake import FakeDaemon
from tests.unit.swarmctl.rows import NODE_A, NODE_B, a_node, a_worker


@pytest.fixture
def other():
    with TemporaryDirectory(prefix="shoalctl") as directory:
        server = FakeDaemon(Path(directory))
        yield server
        server.stop()


def count(daemon, kind) -> int:
    return sum(isinstance(request, kind) for request in daemon.state.requests)


def test_promote_and_demote_change_the_wish_and_nothing_else(daemon):
    before = daemon.state.nodes[NODE_B].spec
    result = run("node", "promote", NODE_B, host=daemon.address)
    assert result.output == f"Node {NODE_B} promoted to a manager in the swarm.\n"
    assert daemon.state.nodes[NODE_B].spec == before.replaced(desired_role=NodeRole.MANAGER)
    again = run("node", "promote", NODE_B, host=daemon.address)
    assert again.output == f"Node {NODE_B} is already a manager.\n"
    assert count(daemon, control_pb2.UpdateNodeRequest) == 1
    result = run("node", "demote", NODE_B, "nobody", host=daemon.address)
    assert result.exit_code != 0
    assert f"Manager {NODE_B} demoted in the swarm.\n" in result.output
    assert "nobody" in result.stderr
    assert daemon.state.nodes[NODE_B].spec == before


def test_node_update_takes_a_role(daemon):
    assert run("node", "update", "--role", "manager", NODE_B, host=daemon.address).exit_code == 0
    assert daemon.state.nodes[NODE_B].spec.desired_role is NodeRole.MANAGER
    assert run("node", "update", "--role", "king", NODE_B, host=daemon.address).exit_code == 2


def test_what_keeps_a_node_from_its_role_is_shown(daemon):
    why = "manager 7f cannot be removed: of the 2 managers left only 0 are reachable"
    daemon.state.nodes[NODE_B] = daemon.state.nodes[NODE_B].replaced(role_message=why)
    said = f"is not a worker yet: {why}\n"
    listed = run("node", "ls", host=daemon.address)
    assert listed.stderr.endswith(said)
    assert why not in listed.stdout
    assert run("node", "ls", "-q", host=daemon.address).stderr == ""
    field = run("node", "ls", "--format", "{{.RoleMessage}}", host=daemon.address)
    assert why in field.stdout.splitlines()
    (shown,) = json.loads(run("node", "inspect", NODE_B, host=daemon.address).stdout)
    assert shown["RoleMessage"] == why
    pretty = run("node", "inspect", "--pretty", NODE_B, host=daemon.address)
    assert f"not a worker yet: {why}" in pretty.stdout


def test_a_change_of_role_that_is_under_way_is_shown():
    def shown(node) -> str:
        return node_row(node, "")["ManagerStatus"]

    wish = NodeSpec(desired_role=NodeRole.MANAGER)
    assert shown(a_worker()) == ""
    assert shown(a_worker().replaced(spec=wish)) == "Pending"
    manager = a_node().replaced(spec=wish, manager_status=ManagerStatus(reachable=True))
    assert shown(manager) == "Reachable"
    assert shown(manager.replaced(manager_status=ManagerStatus())) == "Unreachable"
    assert shown(manager.replaced(spec=NodeSpec())) == "Demoting"
    assert shown(manager.replaced(manager_status=None, spec=NodeSpec())) == "Pending"


def test_cluster_update_changes_what_was_given(daemon):
    result = run(
        "cluster", "update", "--task-history-limit", "2", "--dispatcher-heartbeat", "3s",
        "--cert-expiry", "48h", "--snapshot-interval", "500", "--managers", "3",
        "--network-key-rotation", "6h", "--placement-strategy", "binpack",
        host=daemon.address,
    )  # fmt: skip
    assert result.output == "Swarm updated.\n", result.output
    spec = daemon.state.cluster.spec
    assert spec.orchestration.task_history_retention_limit == 2
    assert spec.orchestration.placement_strategy is PlacementStrategy.BINPACK
    assert spec.dispatcher.heartbeat_period_ns == 3_000_000_000
    assert spec.ca.node_certificate_validity_ns == 48 * 3600 * 1_000_000_000
    assert (spec.raft.snapshot_interval, spec.raft.managers_wanted) == (500, 3)
    assert spec.network.key_rotation_ns == 6 * 3600 * 1_000_000_000
    assert run("cluster", "update", "--managers", "0", host=daemon.address).exit_code == 0
    assert daemon.state.cluster.spec == spec.replaced(raft=spec.raft.replaced(managers_wanted=0))


def test_cluster_update_without_a_change_writes_nothing(daemon):
    assert run("cluster", "update", "--managers", "0", host=daemon.address).exit_code == 0
    assert count(daemon, control_pb2.UpdateClusterRequest) == 0


def test_cluster_inspect_shows_settings_and_defaults(daemon):
    run(
        "cluster", "update", "--managers", "3", "--placement-strategy", "binpack",
        host=daemon.address,
    )  # fmt: skip
    shown = json.loads(run("cluster", "inspect", host=daemon.address).output)[0]
    assert shown["ID"] == "cluster0"
    assert shown["Spec"]["Raft"] == {"ManagersWanted": 3}
    pretty = run("cluster", "inspect", "--pretty", host=daemon.address).output
    assert "Placement strategy:\tbinpack\n" in pretty
    assert "Managers to keep up:\t3\n" in pretty
    assert "Snapshot interval:\t10000\n" in pretty
    wanted = ["--format", "{{.Spec.Raft.ManagersWanted}}"]
    assert run("cluster", "inspect", *wanted, host=daemon.address).output == "3\n"


def test_another_manager_of_the_context_serves_when_the_first_does_not(daemon, other):
    daemon.stop()
    contexts.save_context("c", Context(host=daemon.address, others=(other.address,)))
    result = run("--context", "c", "node", "ls", "--quiet")
    assert NODE_A in result.output, result.output
    assert count(other, control_pb2.ListNodesRequest)


def test_the_first_manager_serves_while_it_can(daemon, other):
    contexts.save_context("c", Context(host=daemon.address, others=(other.address,)))
    assert run("--context", "c", "node", "ls", "--quiet").exit_code == 0
    assert count(daemon, control_pb2.ListNodesRequest)
    assert other.state.requests == []


@pytest.mark.parametrize("command", [["leave"], ["info"], ["init"]])
def test_what_concerns_the_node_is_not_done_to_another(daemon, other, command):
    daemon.stop()
    contexts.save_context("c", Context(host=daemon.address, others=(other.address,)))
    assert run("--context", "c", *command).exit_code != 0
    assert other.state.requests == []


def test_no_manager_answers(daemon, other):
    daemon.stop()
    other.stop()
    contexts.save_context("c", Context(host=daemon.address, others=(other.address,)))
    result = run("--context", "c", "node", "ls")
    assert result.exit_code != 0
    assert daemon.address in result.output


def test_context_create_takes_several_hosts(daemon, other):
    hosts = ["--host", daemon.address, "--host", other.address]
    assert run("context", "create", "c", *hosts).exit_code == 0
    made = contexts.load().get("c")
    assert (made.host, made.others) == (daemon.address, (other.address,))
    assert count(daemon, node_pb2.InfoRequest) == 0
