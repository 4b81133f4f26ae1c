"""The run: services are scaled and rolled, a container and a node killed, another one drained.

Names must follow what the managers say, on every node; see `judge`.
"""

from __future__ import annotations

import os
import random
import signal

import msgspec

from tests.integration.cluster.lab import eventually
from tests.names.stage import SERVICES, Service, Stage

WORKERS = ("w1", "w2")
"""One is drained and the other one loses its power, in turn."""


class Size(msgspec.Struct, frozen=True):
    """How much is done. rounds: of everything; pause_s: of each asker between questions."""

    managers: int = 3
    workers: int = 2
    rounds: int = 10
    pause_s: float = 0.03
    kill: bool = True
    """Cut a worker's power in each round, and start it again."""


def change(stage: Stage, size: Size) -> None:
    """Everything, so many times."""
    for number in range(1, size.rounds + 1):
        _round(stage, number, kill=size.kill)


def _round(stage: Stage, number: int, *, kill: bool) -> None:
    web, api, db = SERVICES
    stage.say(f"round {number}: scale")
    stage.scale((web, 6), (api, 6), (db, 5))
    stage.scale((web, 2), (api, 3), (db, 2))
    stage.scale((web, web.replicas), (api, api.replicas), (db, db.replicas))
    stage.say(f"round {number}: roll")
    stage.do("service", "update", "--force", "--update-parallelism", "2", api.name)
    stage.say(f"round {number}: kill a container")
    _kill_container(stage, db)
    if kill:
        drained, doomed = WORKERS if number % 2 else reversed(WORKERS)
        stage.say(f"round {number}: drain {drained}")
        stage.do("node", "update", "--availability", "drain", drained)
        eventually(f"{drained} is empty", lambda: not stage.on(drained))
        stage.do("node", "update", "--availability", "active", drained)
        if stage.on(doomed):
            stage.say(f"round {number}: power cut of {doomed}")
            _kill_node(stage, doomed)
        stage.do("service", "update", "--force", "--update-parallelism", "2", web.name)


def _kill_container(stage: Stage, service: Service) -> None:
    victim = random.choice(sorted(stage.ready(service)))
    asker = stage.managers.askers(service.name)[victim]
    with stage.trouble(lambda: frozenset({victim})):
        os.kill(asker.pid, signal.SIGKILL)
        eventually(
            "another one is ready",
            lambda: victim not in stage.ready(service) and stage.counts(service, service.replicas),
        )
    stage.changes += 1


def _kill_node(stage: Stage, node: str) -> None:
    """Cut its power, and let it come back; what dies often gets no tasks for a while then."""
    with stage.trouble(lambda: stage.on(node)) as dead:
        stage.lab.lab("kill", node, "--hard")

        def replaced() -> bool:
            gone = all(not dead & stage.ready(one) for one in SERVICES)
            return gone and all(stage.counts(one, one.replicas) for one in SERVICES)

        eventually("its tasks run elsewhere", replaced)
    stage.killed += 1
    stage.lab.lab("start", node)
    eventually(f"{node} is back", lambda: stage.lab.node_states()[node] != "Down")
