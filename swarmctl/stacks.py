"""The calls about stacks."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import grpc

from shoal.api.v1 import specs_pb2, types_pb2
from shoal.api.v1 import stacks_pb2 as pb
from shoal.api.v1.stacks_pb2_grpc import StacksStub
from shoal.errors import InvalidArgument
from shoal.model.objects import Stack
from shoal.model.specs import StackSpec
from shoal.wire.objects import from_pb, to_pb
from swarmctl.client import CALL_TIMEOUT_S, Client

DEPLOY_TIMEOUT_S = 120.0
"""Contents that do not fit into one log entry are written one by one."""
REQUEST_BYTES_MAX = 3_500_000
"""gRPC takes 4 MiB."""


async def deploy_stack(
    client: Client, spec: StackSpec, *, prune: bool, version: int
) -> pb.DeployStackResponse:
    """Deploy a stack. version: of the newest revision; 0: whatever is there."""
    request = _request(spec, prune=prune, version=version)
    call = _stub(client).DeployStack(request, timeout=DEPLOY_TIMEOUT_S)
    answer: pb.DeployStackResponse = await _call(client, call)
    return answer


async def plan_stack(
    client: Client, spec: StackSpec, *, prune: bool, version: int
) -> pb.PlanStackResponse:
    """What deploying a stack would do."""
    request = _request(spec, prune=prune, version=version)
    call = _stub(client).PlanStack(request, timeout=DEPLOY_TIMEOUT_S)
    answer: pb.PlanStackResponse = await _call(client, call)
    return answer


async def roll_back_stack(client: Client, name: str, revision: int) -> pb.DeployStackResponse:
    """Deploy an earlier revision; 0: the one before."""
    request = pb.RollBackStackRequest(stack=name, revision=revision)
    call = _stub(client).RollBackStack(request, timeout=DEPLOY_TIMEOUT_S)
    answer: pb.DeployStackResponse = await _call(client, call)
    return answer


async def remove_stack(client: Client, name: str) -> list[pb.StackChange]:
    """Remove everything of a stack."""
    request = pb.RemoveStackRequest(stack=name)
    answer = await _call(client, _stub(client).RemoveStack(request, timeout=DEPLOY_TIMEOUT_S))
    return list(answer.changes)


async def list_stacks(client: Client) -> list[pb.StackSummary]:
    """All stacks, whoever made them."""
    request = pb.ListStacksRequest()
    return list(
        (await _call(client, _stub(client).ListStacks(request, timeout=CALL_TIMEOUT_S))).stacks
    )


async def get_stack(client: Client, name: str, revision: int) -> Stack:
    """A revision of a stack, 0: the newest. Its contents are left out."""
    request = pb.GetStackRequest(stack=name, revision=revision)
    answer = await _call(client, _stub(client).GetStack(request, timeout=CALL_TIMEOUT_S))
    return from_pb(answer.stack, Stack)


async def list_revisions(client: Client, name: str) -> list[Stack]:
    """The revisions of a stack that are kept, the newest first."""
    request = pb.ListStackRevisionsRequest(stack=name)
    answer = await _call(client, _stub(client).ListStackRevisions(request, timeout=CALL_TIMEOUT_S))
    return [from_pb(one, Stack) for one in answer.revisions]


def _request(spec: StackSpec, *, prune: bool, version: int) -> pb.DeployStackRequest:
    request = pb.DeployStackRequest(
        spec=to_pb(spec, specs_pb2.StackSpec),
        prune=prune,
        version=types_pb2.Version(index=version) if version else None,
    )
    size_bytes = request.ByteSize()
    if size_bytes > REQUEST_BYTES_MAX:
        raise InvalidArgument(
            f"stack: {size_bytes} bytes with the contents of its secrets and configs, at most"
            f" {REQUEST_BYTES_MAX}: make large ones by themselves, and declare them as external"
        )
    return request


def _stub(client: Client) -> Any:
    return StacksStub(client.channel)


async def _call(client: Client, call: Awaitable[Any]) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
