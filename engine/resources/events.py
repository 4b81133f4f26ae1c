"""`/events`: what happens on the node, and on a manager in the cluster, as JSON objects."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from engine.cluster.following import ClusterEvents
from engine.http.call import Answer, Call
from engine.http.filters import Filters
from engine.http.routing import Route
from engine.ports import Event, Events
from shoal.clock import NS_PER_S
from shoal.docker.events import TASK

_BY_ID_OR_NAME = ("container", "network", "volume", "plugin", "service", "node", "secret",
                  "config", "daemon", "task")  # fmt: skip
_BEGINNINGS = frozenset(("exec_create", "exec_start", "health_status"))
"""Actions that carry more behind a colon: one of them makes all wishes of `event` beginnings."""


def routes(events: Events, cluster: ClusterEvents) -> Iterable[Route]:
    """The one operation."""

    async def follow(call: Call) -> Answer:
        since_ns, until_ns = call.query.time_ns("since"), call.query.time_ns("until")
        filters = call.query.filters()  # names nobody knows are passed over here, as in Docker
        if since_ns is None and until_ns is not None:
            since_ns = 0
        tasks = TASK in filters.values("type")
        async with (
            events.subscribe(since_ns=since_ns, until_ns=until_ns, tasks=tasks) as stream,
            cluster.telling_of_tasks() if tasks else nullcontext(),
            call.stream("application/json") as out,
        ):
            async for event in stream:
                if is_wished(event, filters):
                    await out.write_json(worded(event))
        return out.answer

    return [Route("GET", "/events", follow, follows_client=True)]


def is_wished(event: Event, filters: Filters) -> bool:
    """Whether all filters hold. Source: moby daemon/events/filter.go."""
    name = event.attributes.get("name", "")
    return (
        _matches_action(event.action, filters)
        and filters.matches("type", event.type)
        and filters.matches("scope", event.scope)
        and filters.matches_labels(event.attributes)
        and all(
            filters.matches_prefix(kind, event.actor) or filters.matches_prefix(kind, name)
            for kind in _BY_ID_OR_NAME
        )
        and _matches_image(event, filters)
    )


def worded(event: Event) -> dict[str, Any]:
    """An event in Docker's words; containers and images also in those of before 1.22."""
    words: dict[str, Any] = {}
    if event.type in {"container", "image"}:
        words = {"status": event.action, "id": event.actor}
    if event.type == "container":
        words["from"] = event.attributes.get("image", "")
    return words | {
        "Type": event.type,
        "Action": event.action,
        "Actor": {"ID": event.actor, "Attributes": event.attributes},
        "scope": event.scope,
        "time": event.time_ns // NS_PER_S,
        "timeNano": event.time_ns,
    }


def _matches_action(action: str, filters: Filters) -> bool:
    if _BEGINNINGS.intersection(filters.values("event")):
        return filters.matches_prefix("event", action)
    return filters.matches("event", action)


def _matches_image(event: Event, filters: Filters) -> bool:
    name = event.attributes.get("name" if event.type == "image" else "image", "")
    candidates = {event.actor, name, _without_tag(event.actor), _without_tag(name)}
    return filters.matches_any("image", candidates)


def _without_tag(reference: str) -> str:
    head, separator, tail = reference.rpartition(":")
    return head if separator and "/" not in tail else reference
