"""The run: a service under load while the cluster changes beneath it, then while a node dies.

Changes that people make on purpose must fail no request. A node that loses its power may fail those
requests that were under way to its tasks, and no others.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tests.integration.cluster.lab import Lab, eventually
from tests.zeroloss.client import Failure
from tests.zeroloss.failover import fail_over
from tests.zeroloss.image import IMAGE, PORT, write_image
from tests.zeroloss.load import Load, Tally

ENTRIES = ("m1", "w2")
"""The nodes that are asked; w1 is the one that is drained, and that dies."""
VICTIM = "w1"
SERVICE = "polite"
PUBLISHED = 8080
REPLICAS = 6
SLOW_START_MS = 200
"""From the server's start until it listens; it has no health check."""
COMMAND_TIMEOUT_S = 180.0
AFTER_S = 1.0
"""Load before the first and after the last change."""
DEAD_LOAD_S = 8.0
"""Load after a node's death: detection, the repetition of a SYN, replacement."""


class Size(msgspec.Struct, frozen=True):
    """How much is done. requests: at least so many, by going on after the last change."""

    requests: int = 1_000_000
    scalings: int = 20
    rolls: int = 5
    managers: int = 3
    failovers: int = 3
    """Deaths of the leading manager, each while tasks drain."""
    users: int = 4
    pause_s: float = 0.002
    wrk: int = 8
    kill: bool = True
    heartbeat: str = ""
    """How often nodes beat; "": as they do by themselves. Where other work keeps processors busy
    a killed worker process may be back too late, and what the managers then take for a dead node is
    no matter of this suite."""


class Killed(msgspec.Struct, frozen=True):
    """What the death of a node did. unexpected: failures of requests that were not under way."""

    tally: Tally
    unexpected: tuple[Failure, ...]
    last_failure_s: float
    """From the kill to the last failure; 0 without any."""


class Run:
    """One lab with one service, changed and asked."""

    def __init__(self, lab: Lab, size: Size) -> None:
        self._lab = lab
        self._size = size

    def change(self) -> Tally:
        """Every change that people make on purpose, under load."""
        with self._load(wrk=self._size.wrk) as load:
            began_s = time.monotonic()
            time.sleep(AFTER_S)
            self._scale()
            for order in ("start-first", "stop-first"):
                for number in range(self._size.rolls):
                    self._say(f"roll {number + 1}, {order}")
                    self._swarmctl(
                        "service", "update", "--force", "--update-order", order,
                        "--update-parallelism", "2", SERVICE,
                    )  # fmt: skip
            for number in range(self._size.failovers):
                held = fail_over(self._lab, SERVICE, frozen=VICTIM, heartbeat=self._size.heartbeat)
                self._say(f"leader {number + 1} killed while {held} tasks were draining")
            self._drain()
            self._restart_worker()
            time.sleep(AFTER_S)
            tally = load.stop()
        changed_s = time.monotonic() - began_s
        while tally.requests < self._size.requests:
            self._say(f"{tally.requests} requests so far")
            with self._load(wrk=self._size.wrk) as load:
                self._roll_for(min(changed_s, 30.0))
                tally += load.stop()
        return tally

    def kill(self) -> Killed:
        """Cut the power of a node that runs some of the tasks, under load that knows its tasks."""
        with self._load(wrk=0) as load:
            time.sleep(AFTER_S)
            doomed = self._host_names(VICTIM)
            if not doomed:
                raise RuntimeError(f"no task runs on {VICTIM}: its death would show nothing")
            self._say(f"power cut of {VICTIM}, {len(doomed)} tasks")
            killed_s = time.monotonic()
            self._lab.lab("kill", VICTIM, "--hard")
            dead_s = time.monotonic()
            time.sleep(DEAD_LOAD_S)
            tally = load.stop()
        unexpected = tuple(one for one in tally.failures if not _under_way(one, doomed, dead_s))
        last_s = max((one.at_s - killed_s for one in tally.failures), default=0.0)
        return Killed(tally, unexpected, last_s)

    def create(self) -> None:
        """The service, on every node."""
        archive = self._lab.base / "polite.tar"
        write_image(archive)
        self._lab.swarmctl(
            "image",
            "import",
            str(archive),
            IMAGE,
            "--change",
            f'CMD ["/server","{PORT}","{SLOW_START_MS}"]',
        )
        if self._size.heartbeat:
            self._swarmctl("cluster", "update", "--dispatcher-heartbeat", self._size.heartbeat)
        self._swarmctl(
            "service", "create", "--name", SERVICE, "--replicas", str(REPLICAS),
            "--publish", f"{PUBLISHED}:{PORT}", "--restart-delay", "100ms",
            "--update-monitor", "200ms", IMAGE,
        )  # fmt: skip

    @contextmanager
    def _load(self, *, wrk: int) -> Iterator[Load]:
        load = Load()
        try:
            load.start(
                [self._lab.addresses[node] for node in ENTRIES],
                PUBLISHED,
                users=self._size.users,
                pause_s=self._size.pause_s,
                wrk=wrk,
            )
            yield load
        finally:
            load.kill()

    def _scale(self) -> None:
        for number in range(self._size.scalings):
            replicas = 2 if number % 2 == 0 else REPLICAS
            self._say(f"scale to {replicas}")
            self._swarmctl("service", "scale", f"{SERVICE}={replicas}")
            if replicas < REPLICAS:  # the command waits for those that shall run alone
                eventually("the surplus ends", partial(self._has, replicas))

    def _has(self, replicas: int) -> bool:
        return len(self._live()) == replicas

    def _roll_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._swarmctl("service", "update", "--force", SERVICE)

    def _drain(self) -> None:
        self._say(f"drain {VICTIM}")
        self._swarmctl("node", "drain", "--wait", VICTIM)
        self._swarmctl("node", "activate", VICTIM)
        self._swarmctl("service", "update", "--force", SERVICE)  # brings some of them back
        self._say(f"drain {VICTIM}, all at once")
        self._swarmctl("node", "drain", "--stop-first", VICTIM)
        eventually("it is empty", lambda: not self._host_names(VICTIM))
        self._swarmctl("node", "activate", VICTIM)
        self._swarmctl("service", "update", "--force", SERVICE)  # brings some of them back

    def _restart_worker(self) -> None:
        """Kill an entry node's worker process (module `engine`), and roll while it is away."""
        self._say(f"kill -9 of the worker process of {ENTRIES[1]}")
        shown = self._lab.swarmctl(
            "lab", "top", "--name", self._lab.name, ENTRIES[1], "--format", "{{.Pid}} {{.Command}}"
        )
        (pid,) = (int(line.split()[0]) for line in shown.splitlines() if "-m engine" in line)
        os.kill(pid, signal.SIGKILL)
        self._swarmctl(
            "service", "update", "--force", "--update-order", "start-first",
            "--update-parallelism", "0", SERVICE,
        )  # fmt: skip

    def _live(self) -> list[dict[str, Any]]:
        return [task for task in self._lab.tasks(SERVICE) if task["Status"]["State"] == "running"]

    def _host_names(self, node: str) -> frozenset[str]:
        """Host names of the containers that run on a node."""
        ids = self._lab.swarmctl("node", "ls", "--format", "{{.Hostname}} {{.ID}}").splitlines()
        node_id = dict(line.split()[:2] for line in ids)[node]
        return frozenset(str(task["ID"])[:12] for task in self._live() if task["NodeID"] == node_id)

    def _swarmctl(self, *words: str) -> None:
        self._lab.run(*words, timeout_s=COMMAND_TIMEOUT_S)

    def _say(self, text: str) -> None:
        sys.stderr.write(f"zero-loss: {time.monotonic():.2f} {text}\n")


@contextmanager
def a_run(base: Path, size: Size) -> Iterator[Run]:
    """A lab of some managers and two workers with the service; all gone afterwards."""
    lab = Lab(f"zl{os.getpid()}", base)
    try:
        lab.up(managers=size.managers, workers=2)
        run = Run(lab, size)
        run.create()
        yield run
    except BaseException:
        for node, text in lab.last_words().items():
            sys.stderr.write(f"log of {node}:\n{text}\n")
        raise
    finally:
        lab.down()


def _under_way(failure: Failure, doomed: frozenset[str], dead_s: float) -> bool:
    """Whether the request may have been on its way to one of the tasks that died."""
    if failure.connected_s is None:
        return False
    return failure.task in doomed or (not failure.task and failure.connected_s <= dead_s)
