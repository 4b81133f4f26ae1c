"""Three managers keep one state: the leader is killed while clients write, and while jobs run.

SHOAL_KILL_ROUNDS: how often it is killed while jobs run, three times unless set; a third as often
while nodes are emptied.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.lab import Lab, eventually
from tests.integration.cluster.leading import depose, managers_of

KILL_ROUNDS = int(os.environ.get("SHOAL_KILL_ROUNDS", "3"))

pytestmark = [pytest.mark.root, pytest.mark.timeout(240 + 30 * KILL_ROUNDS)]


@pytest.fixture(scope="module")
def three() -> Iterator[Lab]:
    """A lab of three managers, all of them voters."""
    base = Path(tempfile.mkdtemp(prefix="shoal-e2e3-"))
    made = Lab(f"e3m{os.getpid()}", base)
    try:
        made.up(managers=3, workers=0)
        eventually("all three vote", lambda: managers_of(made, "m1").count("Reachable") == 2)
        yield made
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


def test_a_killed_leader_costs_no_acknowledged_write_and_no_task(three: Lab) -> None:
    three.swarmctl("service", "create", "--detach", "--name", "web", "--replicas", "2", "web:1")
    before = eventually("2 run", lambda: len(r := three.running("web")) == 2 and r)
    assert managers_of(three, "m1").count("Leader") == 1

    three.lab("kill", "m1")
    made: list[str] = []

    def write() -> bool:
        result = three.run(
            "-H", three.socket("m2"), "service", "create", "--detach", "--replicas", "0",
            "--name", f"s{len(made)}", "web:1", check=False,
        )  # fmt: skip
        if result.returncode == 0:
            made.append(f"s{len(made)}")
        return len(made) == 5

    eventually("writes are accepted again", write)
    shown = three.run("-H", three.socket("m3"), "service", "ls", "--format", "{{.Name}}")
    assert set(shown.stdout.split()) == {"web", *made}

    three.lab("start", "m1")
    eventually("m1 follows", lambda: managers_of(three, "m1").count("Reachable") == 2)
    shown = three.run("-H", three.socket("m1"), "service", "ls", "--format", "{{.Name}}")
    assert set(shown.stdout.split()) == {"web", *made}
    after = eventually("2 run", lambda: len(r := three.running("web")) == 2 and r)
    survivors = {task["ID"] for task in before if task["NodeID"] != _id_of(three, "m1")}
    assert survivors <= {task["ID"] for task in after}


def test_events_go_on_without_a_gap_whoever_leads(three: Lab) -> None:
    path = three.base / "events"
    words = ("events", "--filter", "type=config", "--filter", "event=create", "--format", "json")

    def heard() -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    def make(name: str) -> None:
        file = three.base / "content"
        file.write_text(name)
        attempts = (("create", name, str(file)), ("inspect", name))  # its answer may be lost
        eventually(
            f"{name} is made",
            lambda: any(
                not three.run("config", *words, check=False).returncode for words in attempts
            ),
        )

    with path.open("w") as out:
        reader = subprocess.Popen(
            [sys.executable, "-P", "-m", "swarmctl", *words], stdout=out, env=three.environment
        )
    try:
        numbers = iter(range(1000))
        eventually("it hears", lambda: make(f"early{next(numbers)}") or heard())
        for round_number in range(2):
            make(f"before{round_number}")
            depose(three, signal.SIGKILL)
            make(f"after{round_number}")
        eventually("it hears the last", lambda: heard()[-1]["Attributes"]["name"] == "after1")
    finally:
        reader.terminate()
        reader.wait(40)
    names = [event["Attributes"]["name"] for event in heard()]
    assert names[-4:] == ["before0", "after0", "before1", "after1"]
    assert len(set(names)) == len(names)
    late = three.run("events", "--since", "999999999", check=False)
    assert (late.returncode, "version 999999999 is unknown" in late.stderr) == (6, True)

    again = subprocess.Popen(
        [sys.executable, "-P", "-m", "swarmctl", *words, "--since", str(heard()[-3]["Version"])],
        stdout=subprocess.PIPE, text=True, env=three.environment,
    )  # fmt: skip
    try:
        assert again.stdout is not None
        lines = [json.loads(again.stdout.readline()) for _ in range(2)]
        assert lines == heard()[-2:]
    finally:
        again.terminate()
        again.communicate(timeout=40)


def test_no_work_of_a_job_is_done_twice_whoever_leads(three: Lab) -> None:
    """The leader is killed, or stopped so that it comes back as one that was replaced."""
    dice = random.Random(os.getpid())
    work = three.base / "work"
    work.mkdir()
    count = 8 * KILL_ROUNDS
    common = (
        "--detach", "--disconnect-action", "wait", "--mount", f"type=bind,src={work},dst=/work",
        "--env", "SLOT={{.Task.Slot}}", "--env", "NODE={{.Node.Hostname}}",
    )  # fmt: skip
    three.swarmctl(
        "service", "create", *common, "--name", "some", "--mode", "replicated-job",
        "--replicas", str(count), "--max-concurrent", "3", "web:1",
        "sh", "-c", "echo $SLOT >> /work/some; sleep 0.5",
    )  # fmt: skip
    three.swarmctl(
        "service", "create", *common, "--name", "each", "--mode", "global-job", "web:1",
        "sh", "-c", "echo $NODE >> /work/each; sleep 5",
    )  # fmt: skip
    for _ in range(KILL_ROUNDS):
        time.sleep(dice.uniform(0.2, 1.5))
        depose(three, dice.choice([signal.SIGKILL, signal.SIGSTOP]))

    def listed(name: str) -> str:
        done = three.run(
            "service", "ls", "--filter", f"name={name}", "--format", "{{.Replicas}}", check=False
        )
        return done.stdout.strip()

    def runs(name: str) -> list[str]:
        return sorted((work / name).read_text().split())

    expected = sorted(str(slot) for slot in range(count))
    eventually(
        "all is complete",
        lambda: listed("some") == f"0/3 ({count}/{count} completed)",
        deadline_s=60 + 10 * KILL_ROUNDS,
    )
    eventually("on each node, too", lambda: listed("each") == "0/3 (3/3 completed)")
    assert runs("some") == expected
    depose(three, signal.SIGKILL)
    eventually("another one leads", lambda: listed("some") == f"0/3 ({count}/{count} completed)")
    time.sleep(2)
    assert runs("some") == expected
    assert runs("each") == ["m1", "m2", "m3"]


def test_restarts_and_revisions_go_on_whoever_leads(three: Lab) -> None:
    """Attempts are counted, delays grow, and specs are kept, while leaders change in between."""
    marks = three.base / "attempts"
    marks.mkdir()
    three.swarmctl(
        "service", "create", "--detach", "--name", "sick", "--restart-delay", "1s",
        "--restart-backoff", "2", "--restart-max-attempts", "3",
        "--mount", f"type=bind,src={marks},dst=/marks", "web:1",
        "sh", "-c", "cat /proc/uptime >> /marks/times; exit 3",
    )  # fmt: skip

    def times() -> list[float]:
        text = (marks / "times").read_text() if (marks / "times").exists() else ""
        return [float(line.split()[0]) for line in text.splitlines()]

    eventually("the first attempt", times)
    depose(three, signal.SIGSTOP)
    three.swarmctl("service", "update", "--detach", "--label-add", "seen=yes", "sick")
    eventually("its three restarts", lambda: len(times()) == 4)
    depose(three, signal.SIGKILL)
    time.sleep(3)
    began = times()
    assert len(began) == 4, "no leader begins to count anew"
    for least_s, (one, next_one) in zip((1, 2, 4), pairwise(began), strict=True):
        assert next_one - one >= least_s

    listed = ("service", "history", "sick", "--format", "{{.Revision}}|{{.Cause}}|{{.Changed}}")
    assert three.swarmctl(*listed).splitlines() == ["2 *|updated|labels", "1|created|"]
    three.swarmctl("service", "rollback", "--detach", "--to", "1", "sick")
    assert three.swarmctl(*listed).splitlines()[0] == "3 *|rolled back to 1|labels"
    three.swarmctl("service", "rm", "sick")


def test_a_node_is_emptied_without_a_gap_whoever_leads(three: Lab) -> None:
    """The leader is killed, or stopped, right after it was asked to empty a node."""
    dice = random.Random(os.getpid())
    three.swarmctl(
        "service", "create", "--name", "moving", "--replicas", "6", "--stop-grace-period", "0s",
        "--restart-delay", "100ms", "web:1",
    )  # fmt: skip
    for turn in range(-(-KILL_ROUNDS // 3)):
        node = f"m{turn % 3 + 1}"
        here = [task for task in three.running("moving") if task["NodeID"] == _id_of(three, node)]
        three.swarmctl("node", "drain", node)
        time.sleep(dice.uniform(0, 0.3))
        depose(three, dice.choice([signal.SIGKILL, signal.SIGSTOP]))
        three.run("node", "drain", "--wait", node, timeout_s=150)

        running = three.running("moving")
        assert sorted(task["Slot"] for task in running) == list(range(1, 7)), "each slot once"
        assert not [task for task in running if task["NodeID"] == _id_of(three, node)]
        gone = [task for task in three.tasks("moving") if task["ID"] in {t["ID"] for t in here}]
        assert all(task["Status"]["State"] == "shutdown" for task in gone)
        three.swarmctl("node", "activate", node)
        three.swarmctl("service", "rebalance", "moving", check=False)
    three.swarmctl("service", "rm", "moving")


def _id_of(lab: Lab, node: str) -> str:
    shown = lab.run("-H", lab.socket("m2"), "node", "ls", "--format", "{{.Hostname}} {{.ID}}")
    return dict(line.split()[:2] for line in shown.stdout.splitlines())[node]
