"""Asking for moves to emptier nodes: which services, and what would be moved. Decided on a view."""

from __future__ import annotations

from manager.orchestrator.rebalance.balance import Move
from manager.orchestrator.rebalance.eligible import hindrance_of
from manager.orchestrator.rebalance.plan import MOVES_MAX, proposed_moves
from manager.store.view import View
from shoal.api.v1 import control_pb2 as pb
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.modes import is_global, is_job
from shoal.model.objects import Service
from shoal.model.plan import CHANGES_MAX, Change, update
from shoal.model.row import Row

UNMOVABLE_MAX = 1_000


class Wish(Row, frozen=True):
    """Which services: those that are named, or with none all that can be moved."""

    references: tuple[str, ...] = ()


class Proposal(Row, frozen=True):
    """What would be moved, and of which services moves are asked for.

    unmovable: services and why none of their tasks is ever moved.
    """

    moves: tuple[Move, ...]
    more: bool
    names: dict[str, str]
    service_ids: tuple[str, ...]
    unmovable: tuple[tuple[Service, str], ...]


def wish_of(request: pb.RebalanceServicesRequest) -> Wish:
    """What a request asks for. Raises: InvalidArgument."""
    if request.all == bool(request.services):
        raise InvalidArgument("services: either name some, or ask for all")
    return Wish(references=tuple(request.services))


def propose(view: View, wish: Wish, *, now_ns: int) -> Proposal:
    """Find the moves. Raises: NotFound; FailedPrecondition for a named one that is never moved."""
    if wish.references:
        services = [view.services.resolve(reference) for reference in wish.references]
    else:
        services = sorted(view.services, key=lambda service: service.id)
    unmovable = [(service, why) for service in services if (why := hindrance_of(view, service))]
    if wish.references and unmovable:
        service, why = unmovable[0]
        raise FailedPrecondition(
            f"service {service.spec.annotations.name} is never rebalanced: {why}"
        )
    moves, more = proposed_moves(view, services, now_ns=now_ns)
    chosen = {move.task.service_id for move in moves}
    if more:  # those that were not looked at: the planner finds out
        chosen.update(service.id for service in services if not hindrance_of(view, service))
    told = [
        one for one in unmovable if not (is_global(one[0].spec.mode) or is_job(one[0].spec.mode))
    ]
    return Proposal(
        moves=tuple(moves),
        more=more or len(chosen) > CHANGES_MAX,
        names={service.id: service.spec.annotations.name for service in services},
        service_ids=tuple(sorted(chosen))[:CHANGES_MAX],
        unmovable=tuple(told[:UNMOVABLE_MAX]),
    )


def ask_for(view: View, proposal: Proposal) -> list[Change]:
    """Have the planner move tasks of these services until nothing is left to even out."""
    found = (view.services.get(service_id) for service_id in proposal.service_ids)
    return [
        update(service.replaced(rebalance_moves=MOVES_MAX))
        for service in found
        if service is not None and not service.pending_delete
    ]


def to_answer(proposal: Proposal) -> pb.RebalanceServicesResponse:
    """The answer on the wire."""
    return pb.RebalanceServicesResponse(
        moves=[
            pb.ServiceMove(
                service_id=move.task.service_id,
                service_name=proposal.names.get(move.task.service_id, ""),
                task_id=move.task.id,
                slot=move.task.slot,
                from_node_id=move.task.node_id,
                to_node_id=move.to_node_id,
            )
            for move in proposal.moves
        ],
        unmovable=[
            pb.UnmovableService(
                service_id=service.id, service_name=service.spec.annotations.name, reason=why
            )
            for service, why in proposal.unmovable
        ],
        more=proposal.more,
    )
