"""Rebalancing: moves that users ask for, and those of the background.

Asked for: `service.rebalance_moves` says how many more moves a service is to make. Each is taken
off when it is begun, so the number is their bound; when nothing is left to even out it becomes 0.

In the background, where the cluster's settings name an interval: within each interval at most
MOVES_PER_INTERVAL tasks of all services are moved. How many were is read from the hand-overs in the
store, so a new leader neither forgets nor repeats them; those from drained nodes count as well. A
node gets nothing until nothing changed about it for a minute: one that comes and goes is no place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from manager.orchestrator.rebalance.balance import EVALUATIONS_MAX, Balance, Move
from manager.orchestrator.rebalance.eligible import budget_of, hindrance_of
from manager.orchestrator.slots import place_of
from manager.orchestrator.tasks import new_task
from manager.store.draft import Draft
from manager.store.view import View
from shoal.model.defaults import rebalance_interval_ns
from shoal.model.objects import Service
from shoal.model.plan import Plan

MOVES_PER_INTERVAL = 5
SETTLED_NS = 60_000_000_000
MOVES_MAX = 1_000
"""Moves that one request may ask for."""


def plan(view: View, service_ids: Iterable[str], *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Begin moves that these services were asked for."""
    draft = Draft(view)
    for service_id in sorted(service_ids):
        advance(draft, service_id, now_ns=now_ns, ids=ids)
    return draft.plan()


def plan_background(view: View, *, now_ns: int, ids: Iterator[str]) -> Plan:
    """Begin the moves of the background that are due."""
    draft = Draft(view)
    advance_background(draft, now_ns=now_ns, ids=ids)
    return draft.plan()


def proposed_moves(
    view: View, services: Iterable[Service], *, now_ns: int
) -> tuple[list[Move], bool]:
    """The moves that would even out these services, as things are now; and whether there are more.

    Their number is bounded, and so is the time it takes to find them.
    """
    balance = Balance(view, now_ns=now_ns)
    moves: list[Move] = []
    left = [service for service in services if not hindrance_of(view, service)]
    while left:
        going = []
        for service in left:
            if len(moves) >= MOVES_MAX or balance.evaluations >= EVALUATIONS_MAX:
                return moves, True
            if (move := balance.best(service)) is not None:
                balance.make(move)
                moves.append(move)
                going.append(service)
        left = going
    return moves, False


def advance(draft: Draft, service_id: str, *, now_ns: int, ids: Iterator[str]) -> None:
    """Write the moves that one service was asked for into a draft."""
    service = draft.view.services.get(service_id)
    if service is None or not service.rebalance_moves:
        return
    if hindrance_of(draft.view, service):
        _settle(draft, service)
        return
    budget = budget_of(draft.view, service)
    if not budget:
        return
    balance = Balance(draft.view, now_ns=now_ns)
    for _ in range(min(budget, service.rebalance_moves)):
        move = balance.best(service)
        if move is None:
            _settle(draft, service)
            return
        if not draft.room(service, new=1):
            return
        _begin(draft, service, move, now_ns=now_ns, ids=ids)
        balance.make(move)
        service = service.replaced(rebalance_moves=service.rebalance_moves - 1)
        draft.update(service)


def advance_background(draft: Draft, *, now_ns: int, ids: Iterator[str]) -> None:
    """Write the moves of the background into a draft, and when to look again."""
    interval_ns = rebalance_interval_ns(draft.view.cluster)
    if not interval_ns:
        return
    draft.wake(now_ns + interval_ns)
    left = MOVES_PER_INTERVAL - _moved_since(draft.view, now_ns - interval_ns)
    if left <= 0:
        return
    balance = Balance(draft.view, now_ns=now_ns, settled_ns=SETTLED_NS)
    for service in _in_turn(draft.view, now_ns // interval_ns):
        if left <= 0 or balance.evaluations >= EVALUATIONS_MAX:
            return
        for _ in range(min(left, budget_of(draft.view, service))):
            move = balance.best(service)
            if move is None or not draft.room(new=1):
                break
            _begin(draft, service, move, now_ns=now_ns, ids=ids)
            balance.make(move)
            left -= 1


def _in_turn(view: View, turn: int) -> list[Service]:
    """The services that may be moved, each interval beginning with another one."""
    services = sorted(
        (service for service in view.services if not hindrance_of(view, service)),
        key=lambda service: service.id,
    )
    first = turn % len(services) if services else 0
    return services[first:] + services[:first]


def _moved_since(view: View, since_ns: int) -> int:
    return sum(
        task.takes_over and (not task.meta.created_at_ns or task.meta.created_at_ns > since_ns)
        for task in view.tasks
    )


def _settle(draft: Draft, service: Service) -> None:
    if draft.room(service):
        draft.update(service.replaced(rebalance_moves=0))


def _begin(draft: Draft, service: Service, move: Move, *, now_ns: int, ids: Iterator[str]) -> None:
    task = new_task(
        draft.view,
        service,
        place=place_of(service, move.task),
        task_id=next(ids),
        now_ns=now_ns,
        replaces=move.task,
        takes_over=True,
    )
    draft.create(task.replaced(node_id=move.to_node_id))
    draft.note(
        "task.moved",
        task_id=move.task.id,
        to=task.id,
        service_id=service.id,
        from_node=move.task.node_id,
        to_node=move.to_node_id,
    )
