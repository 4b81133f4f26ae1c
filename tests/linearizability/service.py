"""What clients use: services of a cluster, seen as names with values, over gRPC.

A label holds the value, so nothing runs: every service has zero replicas. `Unknown` means that
the call may or may not have taken effect, now or later; a refusal that is no answer of the model
(no leader, overload) counts as unknown as well, which is never wrong.
"""

from __future__ import annotations

from typing import Protocol

import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1 import objects_pb2, specs_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.errors import Code
from shoal.wire.errors import from_rpc_error
from tests.linearizability.history import Call, Item, Kind, Outcome, Result

LABEL = "value"
TIMEOUT_S = 4.0

_REFUSALS = {
    (Kind.CREATE, Code.NAME_CONFLICT): Result.EXISTS,
    (Kind.CREATE, Code.ALREADY_EXISTS): Result.EXISTS,
    (Kind.UPDATE, Code.SEQUENCE_CONFLICT): Result.CONFLICT,
    (Kind.UPDATE, Code.NOT_FOUND): Result.MISSING,
    (Kind.REMOVE, Code.NOT_FOUND): Result.MISSING,
    (Kind.GET, Code.NOT_FOUND): Result.MISSING,
}
_UNCERTAIN = {
    Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.NOT_LEADER, Code.NOT_BEGUN,
    Code.RESOURCE_EXHAUSTED,
    Code.SEQUENCE_CONFLICT,  # of a removal: it was tried often and given up
}  # fmt: skip


class Unknown(Exception):
    """No answer, or none that tells what happened."""


class Service(Protocol):
    """One way to the cluster."""

    async def call(self, call: Call) -> Outcome:
        """Do it. Raises: Unknown; whatever else is a fault of the cluster and fails the test."""
        ...


class GrpcService:
    """Control API over one node's socket, as users reach it."""

    def __init__(self, socket: str, *, timeout_s: float = TIMEOUT_S) -> None:
        self._target = f"unix:{socket}"
        self._timeout_s = timeout_s
        self._channel: grpc.aio.Channel | None = None

    async def call(self, call: Call) -> Outcome:
        """See `Service`."""
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(
                self._target, options=[("grpc.use_local_subchannel_pool", 1)]
            )
        try:
            return await self._call(ControlStub(self._channel), call)
        except grpc.aio.AioRpcError as failure:
            error = from_rpc_error(failure)
            if refusal := _REFUSALS.get((call.kind, error.code)):
                return Outcome(refusal)
            if error.code not in _UNCERTAIN:
                raise
            await self.close()  # a new channel tries at once, the old one would wait
            raise Unknown(str(error)) from failure

    async def close(self) -> None:
        """Hang up; the next call connects again."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _call(self, stub: ControlStub, call: Call) -> Outcome:
        timeout = self._timeout_s
        match call.kind:
            case Kind.CREATE:
                created = await stub.CreateService(
                    pb.CreateServiceRequest(spec=spec_of(call.name, call.value)), timeout=timeout
                )
                return Outcome(Result.OK, (item_of(created.service),))
            case Kind.UPDATE:
                request = pb.UpdateServiceRequest(
                    service=call.name, spec=spec_of(call.name, call.value)
                )
                request.version.index = call.version
                updated = await stub.UpdateService(request, timeout=timeout)
                return Outcome(Result.OK, (item_of(updated.service),))
            case Kind.REMOVE:
                await stub.RemoveService(
                    pb.RemoveServiceRequest(service=call.name), timeout=timeout
                )
                return Outcome(Result.OK)
            case Kind.GET:
                got = await stub.GetService(
                    pb.GetServiceRequest(service=call.name), timeout=timeout
                )
                return Outcome(Result.OK, (item_of(got.service),))
            case Kind.LIST:
                request_list = pb.ListServicesRequest()
                request_list.filters.names.append(f"{call.group}-")
                listed = await stub.ListServices(request_list, timeout=timeout)
                assert not listed.next_page_token, "one page, or the list is no single moment"
                return Outcome(Result.OK, tuple(item_of(found) for found in listed.services))


def spec_of(name: str, value: str) -> specs_pb2.ServiceSpec:
    """A service of which nothing runs."""
    spec = specs_pb2.ServiceSpec()
    spec.annotations.name = name
    spec.annotations.labels[LABEL] = value
    spec.task.container.image = "none:1"
    spec.replicated.replicas = 0
    return spec


def item_of(service: objects_pb2.Service) -> Item:
    """What the model knows of a service."""
    annotations = service.spec.annotations
    return Item(annotations.name, annotations.labels[LABEL], service.meta.version.index)
