"""Tasks planned per second, against copying the same rows once.

100 services of 10 replicas on 100 nodes, from nothing to ASSIGNED: every round of the planners,
without the commits between them. The copy is what any planner must pay at least: one `replaced`
per task. Run: python bench/plan.py [--services N] [--replicas N] [--nodes N] [--repeat N]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from manager.reconcile.dirty import EVERYTHING
from manager.reconcile.plan import plan_round
from manager.store.apply import apply_entry
from manager.store.tables import Tables
from shoal.model.enums import ActionKind, NodeState
from shoal.model.objects import Node, Service, StoreAction, StoreEntry
from shoal.model.plan import Change
from shoal.model.specs import ContainerSpec, ReplicatedMode, ServiceSpec, TaskSpec
from shoal.model.types import Annotations, NodeDescription, NodeStatus

NOW_NS = 1_700_000_000_000_000_000


def tables_of(services: int, replicas: int, nodes: int) -> Tables:
    """A cluster that has everything to do yet."""
    spec = ServiceSpec(
        task=TaskSpec(runtime=ContainerSpec(image="nginx:1")),
        mode=ReplicatedMode(replicas=replicas),
    )
    rows: list[Node | Service] = [
        Node(
            id=f"node{number:05}",
            status=NodeStatus(state=NodeState.READY),
            description=NodeDescription(hostname=f"host{number}"),
        )
        for number in range(nodes)
    ]
    rows += [
        Service(
            id=f"service{number:05}",
            spec=spec.replaced(annotations=Annotations(name=f"service{number}")),
        )
        for number in range(services)
    ]
    return Tables(rows)


def commit(tables: Tables, changes: tuple[Change, ...], index: int) -> None:
    actions = tuple(
        StoreAction(
            kind=change.kind,
            object=change.object,
            expected_version=(
                0 if change.kind is ActionKind.CREATE else change.object.meta.version.index
            ),
        )
        for change in changes
    )
    apply_entry(tables, StoreEntry(actions=actions, proposed_at_ns=NOW_NS), index)


def plan_all(tables: Tables) -> tuple[float, float]:
    """Seconds of all rounds together, and of the longest one."""
    ids = (f"task{number:08}" for number in count())
    total_s = longest_s = 0.0
    dirty = EVERYTHING
    for index in count(1):
        start = time.perf_counter()
        done = plan_round(tables, dirty, now_ns=NOW_NS, ids=ids)
        took_s = time.perf_counter() - start
        total_s += took_s
        longest_s = max(longest_s, took_s)
        if not done.changes and not done.more:
            break
        commit(tables, done.changes, index)
        dirty = done.rest if done.more else EVERYTHING
    return total_s, longest_s


def copy_all(tables: Tables) -> float:
    """Seconds to copy every task once."""
    tasks = list(tables.tasks)
    start = time.perf_counter()
    for task in tasks:
        task.replaced(node_id="other")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    wish = parser.parse_args()
    runs = []
    for _ in range(wish.repeat):
        tables = tables_of(wish.services, wish.replicas, wish.nodes)
        total_s, longest_s = plan_all(tables)
        runs.append((total_s, longest_s, copy_all(tables), len(tables.tasks)))
    total_s, longest_s, copied_s, tasks = min(runs)
    print(
        json.dumps(
            {
                "tasks": tasks,
                "tasks_per_second": round(tasks / total_s),
                "longest_round_ms": round(longest_s * 1e3, 1),
                "times_the_cost_of_a_copy": round(total_s / copied_s, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
