"""Histories that are linearizable by construction: sequential runs whose calls are let overlap.

The order of effects is the order of the list; every call begins some time before its effect, after
the same client's last one, and returns some time after it. Some outcomes are forgotten, and of
those some effects come late or never.
"""

from __future__ import annotations

import random

import msgspec

from tests.linearizability.history import Call, Kind, Operation
from tests.linearizability.memory import MemoryService

STEP_NS = 1_000


class Shape(msgspec.Struct, frozen=True):
    """How a random history looks. overlap: by how many effects a call may reach back or ahead."""

    seed: int
    operations: int = 40
    clients: int = 4
    names: int = 2
    overlap: int = 4
    unknown_percent: int = 10


def good_history(shape: Shape) -> list[Operation]:
    """A history of one group that has an explanation."""
    chosen = random.Random(shape.seed)
    cluster = MemoryService(seed=shape.seed)
    versions: dict[str, int] = {}
    free_ns = dict.fromkeys(range(shape.clients), 0)
    history = []
    for number in range(1, shape.operations + 1):
        effect_ns = number * STEP_NS * 10
        ready = [client for client, free in free_ns.items() if free < effect_ns]
        if not ready:
            continue
        client = chosen.choice(ready)
        call = _call(chosen, shape, versions, value=f"v{number}")
        if call is None:
            continue
        earliest_ns = max(free_ns[client] + 1, effect_ns - shape.overlap * STEP_NS * 10)
        called_ns = chosen.randint(earliest_ns, effect_ns)
        unknown = call.kind not in (Kind.GET, Kind.LIST) and (
            chosen.randrange(100) < shape.unknown_percent
        )
        if unknown and chosen.randrange(2):
            history.append(Operation(client, call, called_ns))  # never took effect
            continue
        outcome = cluster.effect(call)
        if unknown:
            history.append(Operation(client, call, called_ns))
            continue
        returned_ns = chosen.randint(effect_ns, effect_ns + shape.overlap * STEP_NS * 10)
        free_ns[client] = returned_ns
        versions |= {item.name: item.version for item in outcome.items}
        history.append(Operation(client, call, called_ns, outcome, returned_ns))
    chosen.shuffle(history)
    return history


def _call(
    chosen: random.Random, shape: Shape, versions: dict[str, int], *, value: str
) -> Call | None:
    name = f"g-{chosen.randrange(shape.names)}"
    kind = chosen.choice(list(Kind))
    if kind is Kind.UPDATE and name not in versions:
        return None
    return Call(
        kind,
        "g",
        "" if kind is Kind.LIST else name,
        value if kind in (Kind.CREATE, Kind.UPDATE) else "",
        versions[name] if kind is Kind.UPDATE else 0,
    )
