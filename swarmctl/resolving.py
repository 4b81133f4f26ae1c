"""Images of a stack's services pinned to what their names stand for now, as docker does it.

The daemon that is spoken to asks the registries. One that cannot be reached is no error: the nodes
will look for the image themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import grpc

from shoal.api.v1 import node_pb2, node_pb2_grpc
from shoal.errors import SwarmError
from shoal.model.specs import ContainerSpec, ServiceSpec, StackSpec
from shoal.model.stacks import IMAGE_LABEL
from shoal.model.types import Platform
from shoal.wire.objects import from_pb
from swarmctl.client import Client

RESOLVE_TIMEOUT_S = 15.0
AT_ONCE_MAX = 8

Pinned = Mapping[str, tuple[str, tuple[Platform, ...]]]


async def resolved(
    client: Client, spec: StackSpec, *, only_changed: bool
) -> tuple[StackSpec, list[str]]:
    """The stack with its images pinned, and a warning for each that could not be.

    only_changed: those that services run by the same name already stay what they are.
    """
    known = await _known(client, spec) if only_changed else frozenset()
    wanted: dict[str, str] = {}
    for service in spec.services:
        container = service.task.runtime
        name = service.annotations.name
        if not isinstance(container, ContainerSpec) or "@" in container.image:
            continue
        if (name, container.image) not in known:
            options = container.pull_options
            wanted[container.image] = "" if options is None else options.registry_auth
    gate = asyncio.Semaphore(AT_ONCE_MAX)

    async def one(image: str, auth: str) -> node_pb2.ResolveImageResponse | None:
        async with gate:
            return await _resolve(client, image, auth)

    answers = await asyncio.gather(*(one(image, auth) for image, auth in wanted.items()))
    pinned = {
        image: (answer.image, tuple(map(_platform, answer.platforms)))
        for image, answer in zip(wanted, answers, strict=True)
        if answer is not None
    }
    missing = [_warning(image) for image in wanted if image not in pinned]
    services = tuple(_pin(service, pinned) for service in spec.services)
    return spec.replaced(services=services), missing


async def _known(client: Client, spec: StackSpec) -> Collection[tuple[str, str]]:
    """Services of the cluster, each with its image as its file named it."""
    names = {service.annotations.name for service in spec.services}
    annotations = [entry.service.spec.annotations for entry in await client.services()]
    return {(one.name, one.labels.get(IMAGE_LABEL, "")) for one in annotations if one.name in names}


async def _resolve(client: Client, image: str, auth: str) -> node_pb2.ResolveImageResponse | None:
    stub = node_pb2_grpc.ImagesStub(client.channel)
    request = node_pb2.ResolveImageRequest(image=image, registry_auth=auth)
    try:
        answer: node_pb2.ResolveImageResponse = await stub.ResolveImage(
            request, timeout=RESOLVE_TIMEOUT_S
        )
    except (grpc.aio.AioRpcError, SwarmError):
        return None
    return answer


def _pin(service: ServiceSpec, pinned: Pinned) -> ServiceSpec:
    container = service.task.runtime
    if not isinstance(container, ContainerSpec) or container.image not in pinned:
        return service
    image, platforms = pinned[container.image]
    runtime = container.replaced(image=image)
    placement = service.task.placement.replaced(platforms=platforms)
    return service.replaced(task=service.task.replaced(runtime=runtime, placement=placement))


def _platform(message: object) -> Platform:
    """Without the architecture of ARM, whose nodes run several, as docker has it."""
    platform = from_pb(message, Platform)  # type: ignore[arg-type]
    if platform.architecture.startswith("arm"):
        return platform.replaced(architecture="")
    return platform


def _warning(image: str) -> str:
    return (
        f"image {image} could not be accessed on a registry to record\n"
        f"its digest. Each node will access {image} independently,\n"
        "possibly leading to different nodes running different\nversions of the image."
    )
