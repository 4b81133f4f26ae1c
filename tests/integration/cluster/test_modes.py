"""Global services and jobs on a real cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]


def test_a_global_service_follows_the_nodes(lab: Lab, service: str) -> None:
    done = lab.run(
        "service", "create", "--name", service, "--mode", "global", "--update-monitor", "100ms",
        "--stop-grace-period", "0s",
        "--constraint", "node.labels.off!=yes", "--publish", "8095:80", "web:1",
    )  # fmt: skip
    assert done.stdout.strip().endswith(f"Service {service} converged")
    assert _nodes(lab, service) == sorted(lab.addresses)
    assert _listed(lab, service) == "global 3/3"
    assert {lab.ask(node, 8095)[0] for node in lab.addresses}

    lab.swarmctl("node", "update", "--label-add", "off=yes", "w1")
    eventually("w1 has none", lambda: _nodes(lab, service) == ["m1", "w2"])
    lab.swarmctl("node", "update", "--availability", "drain", "w2")
    try:
        eventually("w2 has none", lambda: _nodes(lab, service) == ["m1"])
        lab.swarmctl("node", "update", "--label-rm", "off", "w1")
        eventually("w1 has one again", lambda: _nodes(lab, service) == ["m1", "w1"])
    finally:
        lab.swarmctl("node", "update", "--availability", "active", "w2")
    eventually("all have one again", lambda: _nodes(lab, service) == sorted(lab.addresses))

    lab.swarmctl("service", "update", "--env-add", "A=1", "--update-parallelism", "0", service)
    envs = [task["Spec"]["ContainerSpec"]["Env"] for task in lab.running(service)]
    assert envs == [["A=1"]] * 3
    refused = lab.run("service", "scale", f"{service}=2", check=False)
    assert "scale can only be used with replicated or replicated-job mode" in refused.stderr


def test_a_job_runs_to_its_end_and_again_when_it_is_changed(lab: Lab, service: str) -> None:
    script = "echo work; [ $((0x$(head -c1 /proc/sys/kernel/random/uuid) % 4)) != 0 ]"
    done = lab.run(
        "service", "create", "--name", service, "--mode", "replicated-job", "--replicas", "4",
        "--max-concurrent", "2", "--restart-delay", "10ms", "web:1", "sh", "-c", script,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "job: complete"
    assert _listed(lab, service) == "replicated job 0/2 (4/4 completed)"
    assert _completed(lab, service) == [0, 1, 2, 3]
    first = {task["ID"] for task in lab.tasks(service)}

    lab.swarmctl("service", "update", "--force", service)
    assert _listed(lab, service) == "replicated job 0/2 (4/4 completed)"
    eventually("the first tasks are gone", lambda: not first & _ids(lab, service))
    assert _completed(lab, service) == [0, 1, 2, 3]


def test_a_job_that_fails_for_good_fails_the_command(lab: Lab, service: str) -> None:
    done = lab.run(
        "service", "create", "--name", service, "--mode", "global-job", "--restart-condition",
        "none", "web:1", "sh", "-c", "exit 3", check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "job failed (0 out of 3 complete)" in done.stderr
    assert "exit" in done.stderr or "(3)" in done.stderr


def test_a_global_job_is_removed_some_time_after_its_end(lab: Lab, service: str) -> None:
    lab.swarmctl(
        "service", "create", "--name", service, "--mode", "global-job", "--ttl-after-finish", "3s",
        "web:1", "hostname",
    )  # fmt: skip
    assert _listed(lab, service) == "global job 0/3 (3/3 completed)"
    gone = eventually("it is gone", lambda: not _listed(lab, service) and time.monotonic())
    assert gone


def _nodes(lab: Lab, service: str) -> list[str]:
    """Names of the nodes with a task that runs and is wanted."""
    shown = lab.swarmctl(
        "service", "ps", service, "--filter", "desired-state=running",
        "--format", "{{.Node}} {{.CurrentState}}",
    )  # fmt: skip
    lines = [line.split() for line in shown.splitlines()]
    return sorted(node for node, state, *_ in lines if state == "Running")


def _listed(lab: Lab, service: str) -> str:
    form = "{{.Mode}} {{.Replicas}}"
    return lab.swarmctl("service", "ls", "--filter", f"name={service}", "--format", form).strip()


def _completed(lab: Lab, service: str) -> list[int]:
    return sorted(
        task.get("Slot", 0)
        for task in lab.tasks(service)
        if task["Status"]["State"] == "complete" and task["DesiredState"] == "complete"
    )


def _ids(lab: Lab, service: str) -> set[str]:
    return {task["ID"] for task in lab.tasks(service)}


def test_one_task_attached(lab: Lab) -> None:
    script = (
        "echo out; echo err >&2; i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); done; exit 7"
    )
    done = lab.run("service", "run", "--hostname", "one", "web:1", "sh", "-c", script, check=False)
    assert done.returncode == 7
    assert done.stdout.splitlines() == ["out", *map(str, range(300))]
    assert done.stderr == "err\n"

    done = lab.run("service", "run", "--constraint", "node.role==manager", "web:1", "hostname")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()

    done = lab.run("service", "run", "web:1", "/nothing/here", check=False)
    assert done.returncode == 127
    assert done.stderr.startswith("Error: task ")
    assert not lab.swarmctl("service", "ls", "--quiet", "--filter", "name=run-")


def test_interrupting_it_removes_the_service(lab: Lab, service: str) -> None:
    command = [sys.executable, "-P", "-m", "swarmctl", "service", "run", "--name", service, "web:1"]
    process = subprocess.Popen(
        [*command, "sh", "-c", "echo begun; sleep 1000"],
        env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.communicate()
    assert not _listed(lab, service)
