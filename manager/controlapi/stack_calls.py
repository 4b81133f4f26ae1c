"""The Stacks service: decode, decide on a view, commit, encode.

Invariants: a deployment is one transaction. Where that would be too large for one log entry, the
contents of secrets and configs are written before it, one by one: nothing refers to them until the
rest is there. No answer holds a content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from typing_extensions import override

from manager.controlapi.plans import Plans
from manager.controlapi.stack_rows import (
    Act,
    Deployment,
    Step,
    remove_stack,
    revisions_of,
    summaries,
)
from manager.controlapi.stacks import check_stack, deploy_stack, put_file, roll_back_stack
from manager.controlapi.validate import SPEC_BYTES_MAX
from manager.rehearsal.stage import Build
from manager.store.store import Store, TransactionTooLarge, commit_with_retry
from manager.store.view import View
from shoal.api.v1 import objects_pb2
from shoal.api.v1 import stacks_pb2 as pb
from shoal.api.v1.stacks_pb2_grpc import StacksServicer
from shoal.clock import Clock
from shoal.errors import InvalidArgument, NotFound
from shoal.ids import new_id
from shoal.model.dependencies import in_order
from shoal.model.objects import Config, Secret, Service
from shoal.model.plan import CHANGES_MAX, Change
from shoal.model.specs import StackSpec
from shoal.wire.objects import fill_pb, from_pb, to_pb

Context = grpc.aio.ServicerContext[Any, Any]
LISTED_MAX = 10_000
"""Stacks in one answer, which so stays below 4 MiB."""

_ACTIONS = {
    Act.CREATED: pb.STACK_ACTION_CREATED,
    Act.UPDATED: pb.STACK_ACTION_UPDATED,
    Act.ROTATED: pb.STACK_ACTION_ROTATED,
    Act.REMOVED: pb.STACK_ACTION_REMOVED,
}


class StacksServer(StacksServicer):
    """Serves `shoal.api.v1.Stacks` from the store of this manager."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._plans = Plans(store, clock)

    @override
    async def DeployStack(
        self, request: pb.DeployStackRequest, context: Context
    ) -> pb.DeployStackResponse:
        spec = _spec_of(request)

        def decide(view: View) -> Deployment:
            return self._deployment(view, request, spec)

        try:
            done = await self._commit(decide, version=request.version.index)
        except TransactionTooLarge:
            await self._put_files(spec)
            done = await self._commit(decide, version=request.version.index)
        return self._answer(done, spec)

    @override
    async def RollBackStack(
        self, request: pb.RollBackStackRequest, context: Context
    ) -> pb.DeployStackResponse:
        def decide(view: View) -> Deployment:
            return roll_back_stack(
                view,
                request.stack,
                request.revision,
                version=request.version.index,
                ids=_random_ids(),
                now_ns=self._clock.now_ns(),
            )

        done = await self._commit(decide, version=request.version.index)
        newest = revisions_of(self._store.view, request.stack)[0]
        return self._answer(done, newest.spec)

    @override
    async def PlanStack(
        self, request: pb.DeployStackRequest, context: Context
    ) -> pb.PlanStackResponse:
        spec = _spec_of(request)
        done = self._deployment(self._store.view, request, spec)
        response = pb.PlanStackResponse(deployment=self._answer(done, spec))
        if done.changes:
            plan = await self._plans.planned(lambda _: _builds(done.changes), context)
            response.plan.CopyFrom(plan)
        return response

    @override
    async def RemoveStack(
        self, request: pb.RemoveStackRequest, context: Context
    ) -> pb.RemoveStackResponse:
        steps: dict[str, Step] = {}
        is_whole = False
        while not is_whole:
            changes: list[Change] = []

            def build(view: View, changes: list[Change] = changes) -> Sequence[Change]:
                changes[:], found = _removal(view, request.stack, begun=bool(steps))
                steps.update({one.id: one for one in found})
                return changes[:CHANGES_MAX]

            await commit_with_retry(self._store, build)
            is_whole = len(changes) <= CHANGES_MAX
        return pb.RemoveStackResponse(changes=map(_step, steps.values()))

    @override
    async def GetStack(self, request: pb.GetStackRequest, context: Context) -> pb.GetStackResponse:
        found = revisions_of(self._store.view, request.stack)
        wanted = [one for one in found if request.revision in (0, one.revision)]
        if not wanted:
            known = ", ".join(str(one.revision) for one in found)
            said = f"revision {request.revision}: there are {known}" if found else "not found"
            raise NotFound(f"stack {request.stack}: {said}")
        return pb.GetStackResponse(stack=to_pb(wanted[0], objects_pb2.Stack))

    @override
    async def ListStacks(
        self, request: pb.ListStacksRequest, context: Context
    ) -> pb.ListStacksResponse:
        found = summaries(self._store.view)
        return pb.ListStacksResponse(
            stacks=[
                pb.StackSummary(
                    name=one.name,
                    services=one.services,
                    networks=one.networks,
                    secrets=one.secrets,
                    configs=one.configs,
                    revision=one.revision,
                    deployed_at_ns=one.deployed_at_ns,
                )
                for one in found[:LISTED_MAX]
            ],
            left_out=max(0, len(found) - LISTED_MAX),
        )

    @override
    async def ListStackRevisions(
        self, request: pb.ListStackRevisionsRequest, context: Context
    ) -> pb.ListStackRevisionsResponse:
        found = revisions_of(self._store.view, request.stack)
        if not found:
            raise NotFound(f"stack {request.stack} not found, or no revision of it is kept")
        response = pb.ListStackRevisionsResponse()
        for one in found:
            shown = one.replaced(spec=StackSpec(annotations=one.spec.annotations))
            fill_pb(shown, response.revisions.add())
        return response

    def _deployment(
        self, view: View, request: pb.DeployStackRequest, spec: StackSpec
    ) -> Deployment:
        return deploy_stack(
            view,
            spec,
            prune=request.prune,
            version=request.version.index,
            ids=_random_ids(),
            now_ns=self._clock.now_ns(),
        )

    async def _commit(self, decide: Callable[[View], Deployment], *, version: int) -> Deployment:
        """Commit; tried again when another change came first, unless the caller named a version."""
        done: list[Deployment] = []

        def build(view: View) -> Sequence[Change]:
            done[:] = [decide(view)]
            return done[0].changes

        await commit_with_retry(self._store, build, attempts_max=1 if version else 10)
        return done[0]

    async def _put_files(self, spec: StackSpec) -> None:
        name = spec.annotations.name
        rows = [Secret(spec=one) for one in spec.secrets]
        for row in (*rows, *(Config(spec=one) for one in spec.configs)):
            fresh = new_id()
            await commit_with_retry(
                self._store,
                lambda view, row=row, fresh=fresh: put_file(view, row, name, new_id=fresh),  # type: ignore[misc]
            )

    def _answer(self, done: Deployment, spec: StackSpec) -> pb.DeployStackResponse:
        needs = {one.annotations.name: [d.service for d in one.depends_on] for one in spec.services}
        rows = [self._store.view.services.by_name(name) for name in in_order(needs)]
        return pb.DeployStackResponse(
            stack=spec.annotations.name,
            revision=done.revision,
            changes=map(_step, done.steps),
            warnings=done.warnings,
            service_ids=[row.id for row in rows if row is not None],
        )


def _spec_of(request: pb.DeployStackRequest) -> StackSpec:
    """The spec, once it is known to be small enough without its contents."""
    if not request.HasField("spec"):
        raise InvalidArgument("spec: must be given")
    contents = sum(len(one.data) for one in request.spec.secrets)
    contents += sum(len(one.data) for one in request.spec.configs)
    size_bytes = request.spec.ByteSize() - contents
    if size_bytes > SPEC_BYTES_MAX:
        raise InvalidArgument(
            f"stack: {size_bytes} bytes, at most {SPEC_BYTES_MAX}, secrets and configs not counted:"
            " part it, or keep large content in configs"
        )
    spec = from_pb(request.spec, StackSpec)
    check_stack(spec)
    return spec


def _removal(view: View, name: str, *, begun: bool) -> tuple[list[Change], list[Step]]:
    """What is left to be removed; nothing at all is an error only where nothing was removed yet."""
    try:
        return remove_stack(view, name)
    except NotFound:
        if not begun:
            raise
        return [], []


def _builds(changes: Sequence[Change]) -> list[Build]:
    """What is rehearsed: each service by itself, everything else before them."""
    others = [one for one in changes if not isinstance(one.object, Service)]
    of_services = [one for one in changes if isinstance(one.object, Service)]
    return [lambda _: others, *((lambda _, one=one: [one]) for one in of_services)]


def _step(step: Step) -> pb.StackChange:
    return pb.StackChange(kind=step.kind, name=step.name, id=step.id, action=_ACTIONS[step.act])


def _random_ids() -> Iterator[str]:
    while True:
        yield new_id()
