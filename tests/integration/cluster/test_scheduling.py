"""What the scheduler does beyond counting, on a real cluster: priorities, company, devices."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

MOST_OF_A_NODE = str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 6 // 10)
QUICK = ("--stop-grace-period", "0s", "--update-monitor", "100ms", "--detach")


@pytest.fixture
def other(lab: Lab, service: str) -> Iterator[str]:
    """A second service, which is removed afterwards."""
    name = f"{service[:40]}-other"
    yield name
    lab.swarmctl("service", "rm", name, check=False)


def _nodes(lab: Lab, service: str) -> list[str]:
    lines = lab.swarmctl(
        "service", "ps", service, "--filter", "desired-state=running",
        "--format", "{{.Node}} {{.CurrentState}}",
    ).splitlines()  # fmt: skip
    return sorted(line.split()[0] for line in lines if " Running" in line)


def test_an_important_task_takes_the_room_of_another(lab: Lab, service: str, other: str) -> None:
    lab.swarmctl(
        "service", "create", "--name", other, "--replicas", "3", "--reserve-memory",
        MOST_OF_A_NODE, "--disruption-budget", "1", *QUICK, "web:1",
    )  # fmt: skip
    eventually("each node is taken", lambda: _nodes(lab, other) == sorted(lab.addresses))
    create = (
        "service", "create", "--name", service, "--reserve-memory", MOST_OF_A_NODE, *QUICK, "web:1",
    )  # fmt: skip
    lab.swarmctl(*create)
    eventually("it waits", lambda: "no suitable node" in lab.swarmctl("service", "ps", service))
    lab.swarmctl("service", "update", "--priority", "10", "--detach", service)
    eventually("it runs", lambda: len(_nodes(lab, service)) == 1)
    assert len(_nodes(lab, other)) == 2
    shown = lab.swarmctl("service", "ps", other, "--no-trunc", "--format", "{{.Error}}")
    assert f"preempted by service {service}, which has priority 10" in shown
    lab.swarmctl("service", "scale", "--detach", f"{service}=2")
    eventually(
        "the second waits",
        lambda: "no suitable node" in lab.swarmctl("service", "ps", service, "--no-trunc"),
    )
    assert len(_nodes(lab, other)) == 2, "its budget is spent"
    assert "is spared: its disruption budget is 1" in lab.swarmctl("service", "explain", service)
    lab.swarmctl("service", "update", "--disruption-budget", "none", "--detach", other)
    eventually("both run", lambda: len(_nodes(lab, service)) == 2)
    assert len(_nodes(lab, other)) == 1


def test_services_are_kept_together_and_apart(lab: Lab, service: str, other: str) -> None:
    lab.swarmctl(
        "service", "create", "--name", other, "--constraint", "node.hostname==w2", *QUICK, "web:1"
    )
    eventually("it runs", lambda: _nodes(lab, other) == ["w2"])
    near = f"service.name == {other}"
    lab.swarmctl(
        "service", "create", "--name", service, "--replicas", "2", "--constraint", near, *QUICK,
        "web:1",
    )  # fmt: skip
    eventually("next to it", lambda: _nodes(lab, service) == ["w2", "w2"])
    lab.swarmctl(
        "service", "update", "--constraint-rm", near, "--constraint-add",
        f"service.name != {other}", "--force", "--detach", service,
    )  # fmt: skip
    eventually("away", lambda: "w2" not in (nodes := _nodes(lab, service)) and len(nodes) == 2)


def test_a_device_of_the_node_and_what_no_node_has(lab: Lab, service: str) -> None:
    done = lab.run(
        "service", "create", "--name", service, "--device", "/dev/null:/dev/nothing:r",
        "--device", "/dev/of-no-node", "--reserve-memory", "1000000g", *QUICK, "web:1",
    )  # fmt: skip
    assert "Warning: reserve-memory: no node of the cluster has" in done.stderr
    assert "Warning: no node of the cluster has all devices" in done.stderr
    explained = lab.swarmctl("service", "explain", service)
    assert "the node has no device /dev/of-no-node" in explained
    done = lab.run(
        "service", "update", "--device-rm", "/dev/of-no-node", "--reserve-memory", "0",
        "--args", "sh -c 'ls -l /dev/nothing; sleep 1000'", "--detach", service,
    )  # fmt: skip
    assert "Warning" not in done.stderr
    eventually("it runs", lambda: len(_nodes(lab, service)) == 1)
    eventually("it shows", lambda: "/dev/nothing" in lab.swarmctl("service", "logs", service))
