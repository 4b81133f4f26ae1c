"""The stream of `swarmctl events`: which changes are wanted, and following them over failures.

Invariant: `Place.version` is the last version all of whose events have been handed on. Whoever goes
on from there misses nothing and hears nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
import msgspec

from shoal.api.v1 import types_pb2, watch_pb2
from shoal.api.v1.watch_pb2_grpc import WatchStub
from shoal.docker.events import KINDS, TASK, ClusterEvent, cluster_event
from shoal.docker.values import OpenMap, Record
from shoal.docker.words import timestamp
from shoal.errors import InvalidArgument
from shoal.model.enums import ActionKind
from shoal.wire.objects import object_from_pb
from swarmctl.client import Client

_ACTIONS = ("create", "update", "remove")
_KEYS = ("type", "event", *KINDS)


class Wish(msgspec.Struct, frozen=True):
    """What is wanted: values of one key are alternatives, all keys must hold."""

    values: dict[str, tuple[str, ...]] = {}

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of objects that must be watched."""
        return self.values.get("type") or KINDS

    def fits(self, event: ClusterEvent) -> bool:
        """Whether it is wanted."""
        actions = self.values.get("event")
        if actions and event.action not in actions:
            return False
        named = {kind: self.values[kind] for kind in KINDS if kind in self.values}
        return all(_concerns(event, kind, wishes) for kind, wishes in named.items())


class Place:
    """How far the stream is; version 0: nowhere yet. heard: messages of managers so far."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.heard = 0


def parse_wish(texts: Iterable[str]) -> Wish:
    """The wish in all `--filter` flags. Raises: InvalidArgument."""
    values: dict[str, tuple[str, ...]] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if key not in _KEYS or not value:
            raise InvalidArgument(
                f"--filter {text!r}: write key=value; the keys are {', '.join(_KEYS)}"
            )
        known = {"type": KINDS, "event": _ACTIONS}.get(key)
        if known is not None and value not in known:
            raise InvalidArgument(f"--filter: {value!r} is not one of {', '.join(known)}")
        values[key] = (*values.get(key, ()), value)
    return Wish(values)


async def follow(
    client: Client, wish: Wish, place: Place, tell: Callable[[int, ClusterEvent], None]
) -> None:
    """Hand on every event after `place`, which moves along; does not end by itself.

    Raises: FailedPrecondition when the managers do not reach back so far; Unavailable, after which
    it is called again with the same place.
    """
    stub: Any = WatchStub(client.channel)
    call = stub.Watch(_request(wish, place.version))
    try:
        async for message in call:
            for event in _events(message):
                if wish.fits(event):
                    tell(message.version.index, event)
            place.version = message.version.index
            place.heard += 1
    except grpc.aio.AioRpcError as error:
        raise client.failure(error) from error
    finally:
        call.cancel()


def event_json(version: int, event: ClusterEvent, time_ns: int) -> Record:
    """An event as an object. time_ns: when it was heard, for removals, which have no other time."""
    return Record(
        {
            "Version": version,
            "Time": timestamp(event.time_ns or time_ns),
            "Type": event.type,
            "Action": event.action,
            "ID": event.actor,
            "Attributes": OpenMap(event.attributes),
        }
    )


def event_text(row: Record) -> str:
    """An event as a line."""
    about = ", ".join(f"{name}={text}" for name, text in sorted(row["Attributes"].items()))
    what = f"{row['Type']} {row['Action']} {row['ID']}"
    return f"{row['Time']} {row['Version']} {what} ({about})"


def _request(wish: Wish, after: int) -> watch_pb2.WatchRequest:
    return watch_pb2.WatchRequest(
        selectors=[watch_pb2.WatchSelector(kind=kind) for kind in wish.kinds],
        resume_from=types_pb2.Version(index=after),
        include_old_object=True,
    )


def _events(message: watch_pb2.WatchMessage) -> Iterator[ClusterEvent]:
    for change in message.events:
        old = object_from_pb(change.old_object) if change.HasField("old_object") else None
        found = cluster_event(ActionKind(change.action), object_from_pb(change.object), old)
        if found is not None:
            yield found


def _concerns(event: ClusterEvent, kind: str, wishes: tuple[str, ...]) -> bool:
    """Whether it is about one of these objects, or about a task of such a service or node."""
    about = event.attributes
    if event.type == kind:
        return any(about["name"] == wish or event.actor.startswith(wish) for wish in wishes)
    if event.type != TASK:
        return False
    name, object_id = about.get(kind, ""), about.get(f"{kind}ID", "")
    return any(wish == name or (object_id and object_id.startswith(wish)) for wish in wishes)
