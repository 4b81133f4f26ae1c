"""Lists of containers in Docker's words. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.containers import inspect
from engine.containers.container import Container
from engine.containers.records import Record
from engine.http.versions import ApiVersion
from engine.ports import ContainerView
from shoal.clock import NS_PER_S
from worker.health.core import STARTING

_LONG = (("days", 24, 336), ("weeks", 168, 1440), ("months", 720, 17520))
"""Unit, its hours, hours from which on it is too small."""


def view(container: Container, now_ns: int) -> ContainerView:
    """What other parts may know of a container."""
    record = container.record
    return ContainerView(
        id=container.id,
        name=container.name,
        image_id=record.image_id,
        image=record.image,
        state=container.state,
        command=_command_text(record),
        created_at_ns=record.created_at_ns,
        labels=record.config.labels or {},
        volumes=frozenset(mount.name for mount in record.mounts if mount.name),
        networks=frozenset(record.networks),
        status=status_text(container, now_ns),
    )


def status_text(container: Container, now_ns: int) -> str:
    """`Up 4 minutes (healthy)`, `Exited (0) 2 hours ago`. Source: moby container/state.go."""
    status, state = container.status, container.state
    if status is None or state in {"created", "dead", "removing"}:
        return {"dead": "Dead", "removing": "Removal In Progress"}.get(state, "Created")
    ended = f"({container.exit_code}) {ago(now_ns - status.finished_at_ns)} ago"
    if state == "restarting":
        return f"Restarting {ended}"
    if state == "exited":
        return f"Exited {ended}"
    up = f"Up {ago(now_ns - status.started_at_ns)}"
    if state == "paused":
        return f"{up} (Paused)"
    if container.health is None:
        return up
    word = container.health.status
    return f"{up} ({'health: ' if word == STARTING else ''}{word})"


def ago(duration_ns: int) -> str:
    """A duration as people say it. Source: docker/go-units."""
    seconds = max(0, duration_ns) // NS_PER_S
    if seconds < 60:
        return _few(seconds)
    minutes, hours = seconds // 60, (seconds + 1800) // 3600
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    if hours < 48:
        return "About an hour" if hours == 1 else f"{hours} hours"
    for unit, length, limit in _LONG:
        if hours < limit:
            return f"{hours // length} {unit}"
    return f"{hours // 8760} years"


def _few(seconds: int) -> str:
    if seconds < 1:
        return "Less than a second"
    return "1 second" if seconds == 1 else f"{seconds} seconds"


def worded(
    container: Container,
    now_ns: int,
    network_ids: Mapping[str, str],
    version: ApiVersion,
    sizes: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """One entry of `docker ps`. sizes: of the writable layer and the whole, when asked for."""
    record = container.record
    words: dict[str, Any] = {
        "Id": record.id,
        "Names": [f"/{record.name}"],
        "Image": record.image,
        "ImageID": record.image_id,
        "Command": _command_text(record),
        "Created": record.created_at_ns // NS_PER_S,
        "Ports": inspect.port_list(record),
        "Labels": record.config.labels or {},
        "State": container.state,
        "Status": status_text(container, now_ns),
        "HostConfig": {"NetworkMode": record.host.network_mode},
        "NetworkSettings": {"Networks": inspect.networks(record, network_ids, version)},
        "Mounts": [inspect.mount(point) for point in record.mounts],
    }
    if sizes is not None:
        words |= {"SizeRw": sizes[0], "SizeRootFs": sizes[1]}
    return words


def _command_text(record: Record) -> str:
    """Program and arguments; an argument with a blank in it is quoted."""
    words = [f"'{word}'" if " " in word else word for word in record.args]
    return " ".join((record.path, *words))
