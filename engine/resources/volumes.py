"""`/volumes`: making, looking at, removing and pruning them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine.containers.inspect import time_text
from engine.containers.requests import Docker
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.errors import Refused
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.http.versions import ApiVersion
from engine.ports import Event, Events
from shoal.clock import NS_PER_S
from shoal.errors import FailedPrecondition, NotFound
from worker.volumes.api import Volume, Volumes

LIST_FILTERS = frozenset(("dangling", "driver", "label", "name"))
PRUNE_FILTERS = frozenset(("label", "label!", "all"))
ANONYMOUS_SINCE = ApiVersion(1, 42)
"""Since then anonymous volumes are told by a label, and pruning takes only them."""
ANONYMOUS_LABEL = "com.docker.volume.anonymous"


class CreateRequest(Docker, frozen=True, kw_only=True):
    """The body of `POST /volumes/create`."""

    name: str = ""
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    cluster_volume_spec: dict[str, Any] | None = None


def routes(volumes: Volumes, events: Events) -> Iterable[Route]:
    """All operations on volumes of the node."""
    resource = _Resource(volumes, events)
    yield Route("GET", "/volumes", resource.list)
    yield Route("POST", "/volumes/create", resource.create)
    yield Route("POST", "/volumes/prune", resource.prune)
    yield Route("GET", "/volumes/{name}", resource.inspect)
    yield Route("DELETE", "/volumes/{name}", resource.remove)


class _Resource:
    def __init__(self, volumes: Volumes, events: Events) -> None:
        self._volumes = volumes
        self._events = events

    async def list(self, call: Call) -> Answer:
        filters = call.query.filters(LIST_FILTERS)
        used = frozenset(await self._volumes.users())
        chosen = [one for one in self._volumes.list() if is_wished(one, filters, used)]
        return json_answer(
            {"Volumes": [worded(one, call.version) for one in chosen], "Warnings": None}
        )

    async def create(self, call: Call) -> Answer:
        request = await call.body(CreateRequest, optional=True)
        if request.cluster_volume_spec is not None:
            raise Refused(501, "ClusterVolumeSpec: this version has no cluster volumes")
        volume = await self._volumes.create(
            request.name,
            driver=request.driver or "local",
            options=request.driver_opts,
            labels=request.labels,
        )
        return json_answer(worded(volume, call.version), 201)

    async def inspect(self, call: Call) -> Answer:
        return json_answer(worded(self._volumes.get(call.path["name"]), call.version))

    async def remove(self, call: Call) -> Answer:
        await self._volumes.remove(call.path["name"], force=call.query.flag("force"))
        return empty(204)

    async def prune(self, call: Call) -> Answer:
        filters = call.query.filters(PRUNE_FILTERS)
        everything = filters.flag("all", default=call.version < ANONYMOUS_SINCE)
        removed, freed = [], 0
        for volume in self._volumes.list():
            if not (everything or volume.anonymous) or not _has_labels(volume, filters):
                continue
            try:
                size = await self._volumes.size_bytes(volume.name)
                await self._volumes.remove(volume.name)
            except (FailedPrecondition, NotFound):  # somebody uses it, or was faster
                continue
            removed.append(volume.name)
            freed += size
        self._events.publish(Event("volume", "prune", "", {"reclaimed": str(freed)}))
        return json_answer({"VolumesDeleted": removed or None, "SpaceReclaimed": freed})


def is_wished(volume: Volume, filters: Filters, used: frozenset[str]) -> bool:
    """Whether all filters hold. used: names of volumes that containers or tasks use."""
    dangling = volume.name not in used
    return (
        filters.matches_part("name", volume.name)
        and filters.matches("driver", volume.driver)
        and filters.matches_labels(labels_of(volume))
        and filters.flag("dangling", default=dangling) == dangling
    )


def worded(volume: Volume, version: ApiVersion) -> dict[str, Any]:
    """A volume in Docker's words."""
    labels = labels_of(volume) if version >= ANONYMOUS_SINCE else volume.labels
    return {
        "CreatedAt": time_text(volume.created_at_ns // NS_PER_S * NS_PER_S),
        "Driver": volume.driver,
        "Labels": labels or None,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": volume.options or None,
        "Scope": "local",
    }


def labels_of(volume: Volume) -> Mapping[str, str]:
    """Its labels, and the one that Docker gives to a volume made without a name."""
    return volume.labels | ({ANONYMOUS_LABEL: ""} if volume.anonymous else {})


def _has_labels(volume: Volume, filters: Filters) -> bool:
    labels = labels_of(volume)
    return filters.matches_labels(labels) and filters.lacks_labels(labels)
