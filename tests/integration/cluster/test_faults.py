"""The leader is killed at random points of updates, rollbacks, jobs and drains.

Whatever the moment, what was asked for is there in the end; no task is started twice; no slot has
more than one task at work, or two while an update starts the new one first; and no work of a job is
repeated. The tasks note their own starts and ends, by the clock of the machine they all share.

SHOAL_FAULT_KILLS: how often, three times unless set; the long form is 20.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab, eventually
from tests.integration.cluster.leading import depose, managers_of

KILLS = int(os.environ.get("SHOAL_FAULT_KILLS", "3"))
REPLICAS = 4
JOB = 6
CONVERGES_S = 90.0
WORKERS = ("w1", "w2")
SERVES = (
    'note() { read up _ < /proc/uptime; echo "$SLOT $TASK $1 $up" >> /work/$NAME; }; '
    "trap 'note end; exit 0' TERM; note start; while :; do sleep 0.1; done"
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(240 + 120 * KILLS)]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab of three managers and two workers."""
    base = Path(tempfile.mkdtemp(prefix="shoal-faults-"))
    made = Lab(f"flt{os.getpid()}", base)
    try:
        made.up(managers=3, workers=2)
        eventually("all three vote", lambda: managers_of(made, "m1").count("Reachable") == 2)
        yield made
    finally:
        made.down()
        shutil.rmtree(base, ignore_errors=True)


class Play:
    """Two services, and what is asked of them; each method says when it is there."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.work = lab.base / "work"
        self.work.mkdir()
        self.values = {"calm": ["0"], "swift": ["0"]}
        self.jobs = 0
        self.drained = 0
        self.common = (
            "--detach", "--constraint", "node.role==worker",
            "--mount", f"type=bind,src={self.work},dst=/work", "--env", "SLOT={{.Task.Slot}}",
            "--env", "TASK={{.Task.ID}}", "--env", "NAME={{.Service.Name}}",
        )  # fmt: skip
        for name, order in (("calm", "stop-first"), ("swift", "start-first")):
            self.swarmctl(
                "service", "create", *self.common, "--name", name, "--env", "V=0",
                "--replicas", str(REPLICAS), "--update-order", order, "--rollback-order", order,
                "--update-monitor", "300ms", "--rollback-monitor", "300ms",
                "web:1", "sh", "-c", SERVES,
            )  # fmt: skip
        eventually(
            "both services run", lambda: all(map(self.has, self.values)), deadline_s=CONVERGES_S
        )

    def swarmctl(self, *words: str) -> None:
        """A command; one whose leader dies meanwhile may be given again: none of these adds up."""
        eventually(" ".join(words), lambda: not self.lab.run(*words, check=False).returncode)

    def has(self, name: str) -> bool:
        """Whether the service runs as it was last asked to, on the nodes that take tasks."""
        tasks = self.lab.running(name)
        wanted = f"V={self.values[name][-1]}"
        right = [task for task in tasks if wanted in task["Spec"]["ContainerSpec"]["Env"]]
        slots = {task["Slot"] for task in right}
        return len(tasks) == len(right) == REPLICAS and slots == set(range(1, REPLICAS + 1))

    def update(self, name: str) -> Callable[[], bool]:
        """Another value in the environment of all tasks."""
        self.values[name].append(str(len(self.values[name])))
        value = f"V={self.values[name][-1]}"
        self.swarmctl("service", "update", "--detach", "--env-add", value, name)
        return lambda: self.has(name)

    def roll_back(self, name: str) -> Callable[[], bool]:
        """The value before the last change: twice in a row it goes there and back."""
        if len(self.values[name]) == 1:
            return self.update(name)
        self.swarmctl("service", "rollback", "--detach", name)
        self.values[name].append(self.values[name][-2])
        return lambda: self.has(name)

    def run_job(self) -> Callable[[], bool]:
        """A job that notes its slots."""
        self.jobs += 1
        name = f"job{self.jobs}"
        self.swarmctl(
            "service", "create", *self.common, "--name", name, "--mode", "replicated-job",
            "--replicas", str(JOB), "--max-concurrent", "2", "web:1",
            "sh", "-c", "echo $SLOT >> /work/$NAME; sleep 0.4",
        )  # fmt: skip
        form = ("service", "ls", "--filter", f"name={name}", "--format", "{{.Replicas}}")
        complete = f"0/2 ({JOB}/{JOB} completed)"
        return lambda: self.lab.run(*form, check=False).stdout.strip() == complete

    def drain(self) -> Callable[[], bool]:
        """One of the workers gives up its tasks; the other one is at work."""
        self.drained += 1
        here, other = WORKERS[self.drained % 2], WORKERS[(self.drained + 1) % 2]
        self.swarmctl("node", "update", "--availability", "active", other)
        self.swarmctl("node", "update", "--availability", "drain", here)

        def done() -> bool:
            ids = {task["NodeID"] for name in self.values for task in self.lab.running(name)}
            return all(map(self.has, self.values)) and len(ids) == 1

        return done

    def check(self) -> None:
        """What the tasks noted."""
        for name, most in (("calm", 1), ("swift", 2)):
            by_slot: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
            starts: Counter[str] = Counter()
            for line in (self.work / name).read_text().splitlines():
                slot, task, what, noted = line.split()
                starts[task] += what == "start"
                # Of what happened within one tick of the clock the end counts as the first.
                by_slot[slot].append((float(noted), 1 if what == "start" else -1))
            assert set(starts.values()) == {1}, f"{name}: a task was started twice"
            for slot, steps in by_slot.items():
                at_work = 0
                for at_s, step in sorted(steps):
                    at_work += step
                    assert at_work <= most, f"{name}: {at_work} tasks in slot {slot} at {at_s}"
        for number in range(1, self.jobs + 1):
            done = sorted((self.work / f"job{number}").read_text().split())
            assert done == sorted(map(str, range(JOB))), f"job{number}"


def test_the_leader_is_killed_at_random_points_and_all_ends_as_it_was_asked_for(lab: Lab) -> None:
    seed = int(os.environ.get("SHOAL_FAULT_SEED", str(os.getpid())))
    print(f"seed {seed}")
    dice = random.Random(seed)
    play = Play(lab)
    acts: list[Callable[[], Callable[[], bool]]] = [
        lambda: play.update("calm"),
        lambda: play.update("swift"),
        lambda: play.roll_back(dice.choice(["calm", "swift"])),
        play.run_job,
        play.drain,
    ]
    left: list[Callable[[], Callable[[], bool]]] = []
    for number in range(KILLS):
        left = left or dice.sample(acts, len(acts))
        done = left.pop()()
        time.sleep(dice.uniform(0.0, 2.5))
        depose(lab, dice.choice([signal.SIGKILL, signal.SIGSTOP]))
        eventually(f"act {number} is there", done, deadline_s=CONVERGES_S)
        assert all(map(play.has, play.values)) or eventually(
            "both services run", lambda: all(map(play.has, play.values)), deadline_s=CONVERGES_S
        )
        play.check()
