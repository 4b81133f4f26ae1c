"""`/containers`: making, starting, stopping, looking at and removing them.

Streams into and out of containers are in `streams`, their files in `archive`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from engine.containers import inspect, listing, selection
from engine.containers.container import Container
from engine.containers.parts import ContainerParts
from engine.containers.prune import ACCEPTED as PRUNE_FILTERS
from engine.containers.requests import CreateRequest, UpdateRequest
from engine.containers.service import WaitCondition
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.errors import Refused
from engine.http.query import Query
from engine.http.routing import Route
from shoal.errors import InvalidArgument, NotFound
from worker.runtime.interactive import Confinement

_CONDITIONS = ("not-running", "next-exit", "removed")


def routes(parts: ContainerParts) -> Iterable[Route]:
    """All operations on the life of containers."""
    resource = _Resource(parts)
    yield Route("POST", "/containers/create", resource.create)
    yield Route("GET", "/containers/json", resource.list)
    yield Route("POST", "/containers/prune", resource.prune)
    yield Route("GET", "/containers/{id}/json", resource.inspect)
    yield Route("POST", "/containers/{id}/start", resource.start)
    yield Route("POST", "/containers/{id}/stop", resource.stop)
    yield Route("POST", "/containers/{id}/restart", resource.restart)
    yield Route("POST", "/containers/{id}/kill", resource.kill)
    yield Route("POST", "/containers/{id}/pause", resource.pause)
    yield Route("POST", "/containers/{id}/unpause", resource.unpause)
    yield Route("POST", "/containers/{id}/rename", resource.rename)
    yield Route("POST", "/containers/{id}/update", resource.update)
    yield Route("POST", "/containers/{id}/wait", resource.wait, follows_client=True)
    yield Route("DELETE", "/containers/{id}", resource.remove)


class _Resource:
    def __init__(self, parts: ContainerParts) -> None:
        self._parts = parts
        self._containers = parts.containers
        self._lifecycle = parts.lifecycle

    async def create(self, call: Call) -> Answer:
        request = await call.body(CreateRequest)
        identifier, warnings = await self._parts.creator.create(
            request, call.query.text("name"), call.query.text("platform")
        )
        return json_answer({"Id": identifier, "Warnings": warnings}, 201)

    async def list(self, call: Call) -> Answer:
        wish = selection.Wish(
            filters=call.query.filters(selection.ACCEPTED),
            all=call.query.flag("all"),
            limit=call.query.number("limit"),
        )
        known = selection.Known(self._containers.find, self._images_like, self._network_name)
        await self._containers.refresh_health(*self._containers.all())
        chosen = selection.select(self._containers.all(), wish, known)
        now_ns = self._parts.needs.clock.now_ns()
        network_ids = self._parts.grounds.network_ids()
        with_sizes = call.query.flag("size")
        return json_answer([
            listing.worded(
                one, now_ns, network_ids, call.version,
                await self._parts.directory.sizes(one.id) if with_sizes else None,
            )
            for one in chosen
        ])  # fmt: skip

    async def inspect(self, call: Call) -> Answer:
        container = self._find(call)
        await self._containers.refresh_health(container)
        words = inspect.worded(
            container,
            self._parts.needs.container_dir(container.id),
            self._parts.grounds.network_ids(),
            call.version,
            await self._confinement(container),
        )
        if call.query.flag("size"):
            written, total = await self._parts.directory.sizes(container.id)
            words |= {"SizeRw": written, "SizeRootFs": total}
        return json_answer(words)

    async def _confinement(self, container: Container) -> Confinement:
        try:
            return await self._parts.needs.runtime.confinement(container.id)
        except NotFound:  # half made, or lost
            return Confinement()

    async def start(self, call: Call) -> Answer:
        if call.query.text("checkpoint"):
            raise Refused(501, "checkpoint: this node takes no checkpoints: CRIU is not used")
        await self._lifecycle.start(call.path["id"])
        return empty(204)

    async def stop(self, call: Call) -> Answer:
        await self._lifecycle.stop(
            call.path["id"], signal=call.query.text("signal"), timeout_s=_timeout(call.query)
        )
        return empty(204)

    async def restart(self, call: Call) -> Answer:
        await self._lifecycle.restart(
            call.path["id"], signal=call.query.text("signal"), timeout_s=_timeout(call.query)
        )
        return empty(204)

    async def kill(self, call: Call) -> Answer:
        await self._lifecycle.kill(call.path["id"], call.query.text("signal"))
        return empty(204)

    async def pause(self, call: Call) -> Answer:
        await self._lifecycle.pause(call.path["id"])
        return empty(204)

    async def unpause(self, call: Call) -> Answer:
        await self._lifecycle.unpause(call.path["id"])
        return empty(204)

    async def rename(self, call: Call) -> Answer:
        await self._lifecycle.rename(call.path["id"], call.query.text("name"))
        return empty(204)

    async def update(self, call: Call) -> Answer:
        request = await call.body(UpdateRequest)
        warnings = await self._lifecycle.update(call.path["id"], request)
        return json_answer({"Warnings": warnings or None})

    async def wait(self, call: Call) -> Answer:
        condition = call.query.text("condition") or "not-running"
        if condition not in _CONDITIONS:
            raise InvalidArgument(f'invalid condition: "{condition}"')
        watch = self._containers.watch(call.path["id"], cast("WaitCondition", condition))
        async with call.stream("application/json") as out:
            end = await watch.end()
            error = {"Message": end.error} if end.error else None
            await out.write_json({"StatusCode": end.code, "Error": error})
        return out.answer

    async def prune(self, call: Call) -> Answer:
        pruned = await self._parts.pruner.prune(call.query.filters(PRUNE_FILTERS))
        return json_answer({
            "ContainersDeleted": pruned.ids or None,
            "SpaceReclaimed": pruned.bytes,
        })  # fmt: skip

    async def remove(self, call: Call) -> Answer:
        query = call.query
        if query.flag("link"):
            raise Refused(501, "link: links are part of a container here: remove that")
        await self._lifecycle.remove(
            call.path["id"], force=query.flag("force"), volumes=query.flag("v")
        )
        return empty(204)

    def _find(self, call: Call) -> Container:
        return self._containers.find(call.path["id"])

    def _images_like(self, ref: str) -> frozenset[str]:
        """An image and those with its layers at the bottom."""
        images = self._parts.needs.images
        try:
            base = images.resolve(ref)
        except NotFound:
            return frozenset()
        layers = base.layers
        return frozenset(
            image.id for image in images.list() if image.layers[: len(layers)] == layers
        )

    def _network_name(self, ref: str) -> str:
        for name, identifier in self._parts.grounds.network_ids().items():
            if ref in {name, identifier} or (len(ref) >= 12 and identifier.startswith(ref)):
                return name
        return ref


def _timeout(query: Query) -> int | None:
    return query.number("t") if query.text("t") else None
