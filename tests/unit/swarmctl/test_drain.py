"""node drain, pause and activate."""

from __future__ import annotations

import threading

import pytest

from shoal.model.enums import NodeAvailability, NodeState, TaskState
from shoal.model.types import DrainPolicy
from swarmctl.render.pretty import node_text
from tests.unit.swarmctl.conftest import run
from tests.unit.swarmctl.rows import NODE_B, a_task, a_worker

MINUTE_NS = 60 * 1_000_000_000


def drain_of(daemon):
    spec = daemon.state.nodes[NODE_B].spec
    return spec.availability, spec.drain


def test_drain_pause_and_activate_set_the_availability(daemon):
    before = daemon.state.nodes[NODE_B].spec
    drained = run("node", "drain", "--deadline", "5m", NODE_B, host=daemon.address)
    assert (drained.exit_code, drained.output) == (0, f"{NODE_B}\n")
    assert drain_of(daemon) == (NodeAvailability.DRAIN, DrainPolicy(deadline_ns=5 * MINUTE_NS))
    run("node", "drain", NODE_B, host=daemon.address)
    assert drain_of(daemon) == (NodeAvailability.DRAIN, DrainPolicy())
    run("node", "drain", "--stop-first", NODE_B, host=daemon.address)
    assert drain_of(daemon) == (NodeAvailability.DRAIN, None)
    run("node", "pause", NODE_B, host=daemon.address)
    assert drain_of(daemon) == (NodeAvailability.PAUSE, None)
    run("node", "activate", NODE_B, host=daemon.address)
    assert daemon.state.nodes[NODE_B].spec == before.replaced(availability=NodeAvailability.ACTIVE)


def test_an_update_of_labels_leaves_a_drain_alone_and_one_of_the_availability_ends_it(daemon):
    run("node", "drain", NODE_B, host=daemon.address)
    run("node", "update", "--label-add", "a=b", NODE_B, host=daemon.address)
    assert drain_of(daemon) == (NodeAvailability.DRAIN, DrainPolicy())
    run("node", "update", "--availability", "drain", NODE_B, host=daemon.address)
    assert drain_of(daemon) == (NodeAvailability.DRAIN, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--deadline", "5m", "--stop-first", NODE_B), "exclude each other"),
        (("--deadline", "soon", NODE_B), "soon"),
        (("nobody",), "nobody"),
    ],
)
def test_what_is_refused(daemon, arguments, said):
    refused = run("node", "drain", *arguments, host=daemon.address)
    assert refused.exit_code != 0
    assert said in refused.stderr


def set_state(daemon, state):
    node = daemon.state.nodes[NODE_B]
    daemon.state.nodes[NODE_B] = node.replaced(status=node.status.replaced(state=state))


def test_wait_returns_when_the_node_is_empty(daemon):
    daemon.state.tasks = {"t1": a_task(node_id=NODE_B, state=TaskState.RUNNING)}
    set_state(daemon, NodeState.READY)
    done = threading.Timer(1.0, daemon.state.tasks.clear)
    done.start()
    try:
        waited = run("node", "drain", "--wait", NODE_B, host=daemon.address)
    finally:
        done.cancel()
    assert waited.exit_code == 0
    assert "1 task left, 1 to be replaced" in waited.stderr


def test_wait_fails_when_the_node_goes_down(daemon):
    daemon.state.tasks = {"t1": a_task(node_id=NODE_B, state=TaskState.RUNNING)}
    set_state(daemon, NodeState.DOWN)
    waited = run("node", "drain", "--wait", NODE_B, host=daemon.address)
    assert waited.exit_code != 0
    assert "is down: 1 tasks may run on there" in waited.stderr


def test_the_deadline_is_shown():
    node = a_worker().replaced(drain_until_ns=1_700_000_000 * 1_000_000_000)
    assert "Tasks start elsewhere first, until 2023-11-14T22:13:20Z" in node_text(node)
    assert "Drain:" not in node_text(a_worker())
