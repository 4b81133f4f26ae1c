"""A plan on a real cluster, and then the change: what was said is what happens."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

Places = Counter[tuple[int, str]]
"""Slots and nodes of tasks that run."""


def _plan(lab: Lab, *command: str) -> tuple[int, dict[str, Any]]:
    verb, *rest = command
    done = lab.run("service", verb, "--plan", "--format", "json", *rest, check=False)
    return done.returncode, json.loads(done.stdout)


def _places(lab: Lab, service: str) -> Places:
    return Counter((task.get("Slot", 0), task["NodeID"]) for task in lab.running(service))


def _foretold(before: Places, plan: dict[str, Any]) -> Places:
    """What runs when the plan has come to pass."""
    (service,) = plan["Services"]
    gone = Counter((task["Slot"], task["NodeID"]) for task in service["StoppedTasks"])
    made = Counter((task["Slot"], task["NodeID"]) for task in service["Made"])
    return before - gone + made


def _comes_to(lab: Lab, service: str, foretold: Places) -> None:
    eventually("it comes to what was planned", lambda: _places(lab, service) == foretold)


def test_what_is_planned_is_what_then_happens(lab: Lab, service: str) -> None:
    quickly = ("--update-parallelism", "0", "--update-monitor", "0s", "--stop-grace-period", "1s")
    create = ("create", "--name", service, "--replicas", "4", *quickly, "web:1")
    changes = (
        create,
        ("update", "--env-add", "A=1", "--constraint-add", "node.role==worker", service),
        ("scale", f"{service}=2"),
    )
    places: Places = Counter()
    for command in changes:
        code, plan = _plan(lab, *command)
        assert code == 0, command
        assert not places or places == _places(lab, service), "a plan changes nothing"
        verb, *rest = command
        lab.swarmctl("service", verb, "--detach", *rest)
        foretold = _foretold(places, plan)
        _comes_to(lab, service, foretold)
        places = foretold
        assert len(places) == len(list(places.elements()))
    assert _plan(lab, "scale", f"{service}={len(places)}")[0] == 11, "nothing would change"


def test_what_would_wait_is_told_and_an_old_version_is_refused(lab: Lab, service: str) -> None:
    lab.swarmctl("service", "create", "-d", "--name", service, "web:1")
    eventually("the task runs", lambda: bool(lab.running(service)))
    code, plan = _plan(lab, "update", "--reserve-memory", "900g", service)
    assert code == 1
    (waiting,) = plan["Services"][0]["End"]["Waiting"]
    reasons = {node["Hostname"]: node["Reasons"][0]["Filter"] for node in waiting["Nodes"]}
    assert reasons == dict.fromkeys(lab.addresses, "resources")

    version = str(plan["Services"][0]["Version"])
    lab.swarmctl("service", "update", "-d", "--label-add", "a=1", service)
    done = lab.run("service", "rm", "--check-version", version, service, check=False)
    assert done.returncode == 4
    assert f"read at version {version}, now at " in done.stderr
    assert lab.running(service)
