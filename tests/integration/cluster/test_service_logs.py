"""Logs of services on a real cluster: followed, merged, cut short, and with what is missing."""

from __future__ import annotations

import re
import subprocess
import sys
import time

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

QUICK = ("--stop-grace-period", "0s", "--restart-delay", "100ms", "--update-monitor", "0s")
COUNT = "n=0; while :; do echo $V-$n; n=$((n+1)); sleep 0.2; done"


def test_a_follower_reads_on_through_replacement_and_hears_who_is_missing(
    lab: Lab, service: str
) -> None:
    lab.swarmctl(
        "service", "create", "--name", service, "--replicas", "2", *QUICK, "--env", "V=one",
        "--constraint", "node.hostname!=m1", "web:1", "sh", "-c", COUNT,
    )  # fmt: skip
    command = [sys.executable, "-P", "-m", "swarmctl", "service", "logs", "-f", "--raw", service]
    with subprocess.Popen(
        command, env=lab.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as follower:
        try:
            assert follower.stdout is not None
            _read_until(follower, "one-5")
            lab.swarmctl("service", "update", "--env-add", "V=two", service)
            _read_until(follower, "two-5")
            (victim, *_) = _pids(lab, service)
            subprocess.run(["kill", "-9", victim], check=True)
            _read_until(follower, "two-0", "two-1", "two-2")
        finally:
            follower.terminate()
            follower.wait(40)


def test_lines_are_cut_and_in_the_order_of_time(lab: Lab, service: str) -> None:
    lab.swarmctl(
        "service", "create", "--name", service, "--replicas", "3", *QUICK, "--env", "V=x",
        "web:1", "sh", "-c", COUNT,
    )  # fmt: skip
    eventually("all talk", lambda: lab.swarmctl("service", "logs", service).count("x-9") == 3)

    times = [
        line.split()[0] for line in lab.swarmctl("service", "logs", "-t", service).splitlines()
    ]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", one) for one in times)
    assert times == sorted(times)
    assert len(times) >= 30
    tail = lab.swarmctl("service", "logs", "--tail", "2", service).splitlines()
    assert len(tail) == 6, "two of each task"
    since = lab.swarmctl("service", "logs", "-t", "--since", times[-1], service).splitlines()
    assert since
    assert min(line.split()[0] for line in since) >= times[-1]

    lab.swarmctl("lab", "pause", "--name", lab.name, "w2")
    try:
        partial = lab.run("service", "logs", "--tail", "1", service, check=False, timeout_s=90)
    finally:
        lab.swarmctl("lab", "resume", "--name", lab.name, "w2")
    nodes = {line.split("@")[1].split()[0] for line in partial.stdout.splitlines()}
    assert {"m1", "w1"} <= nodes, "the others are read"
    assert "node w2" in partial.stderr or "incomplete log stream" in partial.stderr
    eventually("w2 is back", lambda: lab.node_states()["w2"] == "Ready")


def _read_until(follower: subprocess.Popen[str], *wanted: str) -> None:
    """Read lines until each of these has come since now."""
    left, end = set(wanted), time.monotonic() + 60
    assert follower.stdout is not None
    while left:
        assert time.monotonic() < end, left
        left.discard(follower.stdout.readline().strip())


def _pids(lab: Lab, service: str) -> list[str]:
    """Of the running containers' first processes."""
    return [str(task["Status"]["ContainerStatus"]["PID"]) for task in lab.running(service)]
