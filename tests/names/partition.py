"""`python -m tests.names.partition`: each node in turn is cut off and healed; root.

A lab of three managers and a worker has the services of `stage`; whatever they do comes from the
cuts alone. While a node is away its tasks are replaced (`api` gets its old ones back afterwards),
and go on asking. After each heal: how long until every answer on every node was what the managers
said at that moment; then no node's kernel has an endpoint of a network that is not there, and no
address of a network is held twice, during the cut neither.

The last line says how many cuts were made and how long names took at most. Exit code 0: no answer
was wrong by what its node had acknowledged (`judge`), no ghost, no duplicate.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import msgspec

from tests.integration.cluster.lab import eventually
from tests.names import kernel
from tests.names.judge import Wrong, last_fault
from tests.names.report import show, show_wrong
from tests.names.stage import SERVICES, Stage, a_stage

MANAGERS, WORKERS = 3, 1
SETTLED_S = 3.0
"""So long after a heal every answer must have been right."""
AWAY_S = (0.0, 4.0)
"""How much longer a node stays away when its tasks have been replaced."""
BAR_S = 2.0


class Cut(msgspec.Struct, frozen=True):
    """What one cut and its heal did.

    heard: answers to tasks of the cut node after the heal, when it has to learn what happened.
    late_s: from the heal to the last question whose answer was not what the managers said.
    """

    node: str
    away_s: float
    heard: int
    late_s: float
    last: Wrong | None


def cut(stage: Stage, node: str) -> Cut:
    """Cut a node off until its tasks run elsewhere and a little longer, and heal it."""
    stage.say(f"cut {node} off")
    with stage.trouble(lambda: stage.on(node)) as lost:
        if not lost:
            raise RuntimeError(f"no task runs on {node}: its absence would show nothing")
        stage.kept, began_s = lost, time.monotonic()
        stage.lab.lab("partition", node)
        eventually("its tasks run elsewhere", partial(_without, stage, lost))
        _check_addresses(stage)
        time.sleep(random.uniform(*AWAY_S))
        away_s = time.monotonic() - began_s
        stage.lab.lab("heal", node)
        healed_s = time.monotonic()
        stage.say(f"{node} is back")
        eventually("its tasks of before have ended", partial(_settled, stage, lost))
        time.sleep(SETTLED_S)
        stage.kept = frozenset()
    eventually("no node has a ghost", lambda: not _ghosts(stage))
    _check_addresses(stage)
    stage.observer.look_again()
    last = last_fault(stage.prober.answers, stage.timelines(), stage.virtual(), from_s=healed_s)
    late_s = 0.0 if last is None else last.answer.asked_s - healed_s
    heard = [one for one in stage.prober.answers if one.asker.task_id in lost]
    since = sum(not one.error and one.asked_s > healed_s for one in heard)
    return Cut(node, away_s, since, late_s, last)


def _without(stage: Stage, lost: frozenset[str]) -> bool:
    counted = all(stage.counts(one, one.replicas) for one in SERVICES)
    return counted and not any(lost & stage.ready(one) for one in SERVICES)


def _settled(stage: Stage, lost: frozenset[str]) -> bool:
    """Whether all run as they should, and whatever is left of the lost tasks is ready."""
    counted = all(stage.counts(one, one.replicas) for one in SERVICES)
    living = {task for one in SERVICES for task in stage.managers.askers(one.name)}
    ready = {task for one in SERVICES for task in stage.ready(one)}
    return counted and not (lost & living) - ready


def _ghosts(stage: Stage) -> set[tuple[str, str, str]]:
    """What nodes' kernels lead to and should not, or should and do not: node, network, address."""
    names = stage.network_names()
    places = {place for one in SERVICES for place in stage.observer.latest(one.name).ready}
    found = set()
    for node in stage.lab.addresses:
        held = kernel.look(stage.lab, node)
        for network_id, addresses in held.elsewhere.items():
            name = names[network_id]
            wanted = {place.address for place in places if place.network == name} - set(held.own)
            found |= {(node, name, address) for address in wanted ^ addresses}
    return found


def _check_addresses(stage: Stage) -> None:
    """No address is held by two tasks, wherever they are: the networks' subnets are disjoint."""
    seen: dict[str, str] = {}
    for node in stage.lab.addresses:
        for address in kernel.look(stage.lab, node).own:
            if address in seen:
                raise AssertionError(f"{address} is on {seen[address]} and on {node}")
            seen[address] = node


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    parser = argparse.ArgumentParser(prog="python -m tests.names.partition", description=__doc__)
    parser.add_argument("--cuts", type=int, default=12, help="nodes in turn")
    parser.add_argument("--nodes", default="", help="those alone: w1,m2 (default: all)")
    parser.add_argument("--pause", type=float, default=0.03, help="of an asker, seconds")
    chosen = parser.parse_args()
    cuts: list[Cut] = []
    with (
        tempfile.TemporaryDirectory(prefix="names-") as scratch,
        a_stage(Path(scratch), managers=MANAGERS, workers=WORKERS, pause_s=chosen.pause) as stage,
    ):
        stage.do("service", "update", "--detach", "--on-return", "keep-original", "api")
        with stage.playing():
            nodes = chosen.nodes.split(",") if chosen.nodes else sorted(stage.lab.addresses)
            for number in range(chosen.cuts):
                cuts.append(cut(stage, nodes[number % len(nodes)]))
                print(_line(cuts[-1]), flush=True)
        outcome = stage.judged()
    show(outcome)
    slowest_s = max(one.late_s for one in cuts)
    met = "met" if slowest_s <= BAR_S else "missed"
    print(
        f"cuts {len(cuts)}, wrong {len(outcome.wrong)}, names right after {slowest_s:.2f} s"
        f" at most (bar {BAR_S:g} s: {met})",
        flush=True,
    )
    return 1 if outcome.wrong else 0


def _line(one: Cut) -> str:
    why = "" if one.last is None else f"; last: {show_wrong(one.last)}"
    return (
        f"{one.node} away {one.away_s:.1f} s, names right {one.late_s:.2f} s after the heal"
        f" ({one.heard} answers there){why}"
    )


if __name__ == "__main__":
    sys.exit(main())
