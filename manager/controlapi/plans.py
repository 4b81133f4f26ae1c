"""Plans: what calls would do, rehearsed on a copy of the store and answered without a change.

Invariants: nothing is written; the loop is held up for the copy alone, the rest is done in a
thread; one plan is made at a time, for PLAN_S seconds at most, and a few wait. A call that would be
refused is answered with its refusal, whatever the others are like. Credentials are not shown.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from manager.controlapi import networks, services
from manager.controlapi.explain import explain_service
from manager.controlapi.plan_answers import PlanAnswer
from manager.controlapi.requests import require_spec
from manager.rehearsal.plan import Rehearsal, rehearse
from manager.rehearsal.stage import Build
from manager.store.store import Store
from shoal.aio.threads import in_thread
from shoal.api.v1 import control_pb2 as pb
from shoal.clock import Clock
from shoal.errors import InvalidArgument, ResourceExhausted
from shoal.ids import new_id
from shoal.model.specs import NetworkSpec, ServiceSpec
from shoal.wire.objects import from_pb

PLAN_S = 10.0
"""A rehearsal is broken off after so long."""
CALLS_MAX = 100
WAITING_MAX = 8
"""Plans that wait while another one is made."""


class Plans:
    """Makes the plans of one leadership."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def plan(self, request: pb.PlanChangesRequest, context: Any) -> pb.PlanChangesResponse:
        """The answer to one call. Raises: InvalidArgument, ResourceExhausted."""
        if not 1 <= len(request.calls) <= CALLS_MAX:
            raise InvalidArgument(f"calls: {len(request.calls)}, from 1 to {CALLS_MAX} are planned")
        return await self.planned(
            lambda now_ns: [_build(call, now_ns=now_ns) for call in request.calls], context
        )

    async def planned(
        self, builds_of: Callable[[int], Sequence[Build]], context: Any
    ) -> pb.PlanChangesResponse:
        """What changes would do. builds_of: gives them for a time. Raises: ResourceExhausted."""
        if self._waiting >= WAITING_MAX:
            raise ResourceExhausted(
                f"{WAITING_MAX} plans wait to be made already: try again in a moment"
            )
        gone = threading.Event()
        context.add_done_callback(lambda _: gone.set())
        self._waiting += 1
        try:
            async with self._turn:
                return await self._made(builds_of, gone.is_set)
        finally:
            self._waiting -= 1

    async def _made(
        self, builds_of: Callable[[int], Sequence[Build]], is_given_up: Callable[[], bool]
    ) -> pb.PlanChangesResponse:
        now_ns = self._clock.now_ns()
        builds = builds_of(now_ns)
        tables = self._store.copy()
        end_s = self._clock.monotonic_s() + PLAN_S

        def is_over() -> bool:
            return is_given_up() or self._clock.monotonic_s() >= end_s

        def work() -> pb.PlanChangesResponse:
            done = rehearse(tables, builds, now_ns=now_ns, ids=_random_ids(), is_over=is_over)
            return _answer(done)

        return await in_thread(work)


def _build(call: pb.PlannedCall, *, now_ns: int) -> Build:
    """What the call would write, once it is known to what; a refusal is raised then as well."""
    match call.WhichOneof("call"):
        case "create_service":
            return _creation(call.create_service, now_ns)
        case "update_service":
            return _update(call.update_service, now_ns)
        case "remove_service":
            gone = call.remove_service
            return lambda view: services.remove_service(
                view, gone.service, version=gone.version.index
            )
        case "create_network":
            new = call.create_network
            network_id = new_id()
            return lambda view: networks.create_network(
                view, from_pb(require_spec(new).spec, NetworkSpec), network_id=network_id
            )
        case "remove_network":
            return lambda view: networks.remove_network(view, call.remove_network.network)
        case _:
            raise InvalidArgument("calls: one of them says nothing that this version can plan")


def _creation(request: pb.CreateServiceRequest, now_ns: int) -> Build:
    service_id = new_id()
    return lambda view: services.create_service(
        view,
        from_pb(require_spec(request).spec, ServiceSpec),
        service_id=service_id,
        now_ns=now_ns,
    )


def _update(request: pb.UpdateServiceRequest, now_ns: int) -> Build:
    version = request.version.index
    if request.rollback:
        return lambda view: services.roll_back_service(
            view, request.service, version=version, now_ns=now_ns, to=request.rollback_to
        )
    return lambda view: services.update_service(
        view,
        request.service,
        from_pb(require_spec(request).spec, ServiceSpec),
        version=version,
        now_ns=now_ns,
    )


def _answer(done: Rehearsal) -> pb.PlanChangesResponse:
    answer = PlanAnswer(done)
    for outcome in (*done.services, *done.others):
        if outcome.after is not None:
            explained = explain_service(done.end, outcome.after, now_ns=done.end_ns)
            answer.explain(outcome.service_id, explained)
    return answer.message


def _random_ids() -> Iterator[str]:
    while True:
        yield new_id()
