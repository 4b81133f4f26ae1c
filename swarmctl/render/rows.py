"""Rows of the lists: what a table, a template or JSON of `... ls` shows of an object.

Each function gives the fields under docker's names, all of them text; the columns of the default
table are next to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import assert_never

from shoal.docker.values import Record
from shoal.docker.words import spell, timestamp
from shoal.model.enums import NodeMembership, NodeRole, PublishMode
from shoal.model.objects import Node, Task
from shoal.model.published import place_of
from shoal.model.specs import (
    ContainerSpec,
    GlobalJobMode,
    GlobalMode,
    ReplicatedJobMode,
    ReplicatedMode,
    ServiceMode,
)
from shoal.model.types import PortConfig
from swarmctl.parsing.units import format_decimal_size
from swarmctl.render.tables import ellipsis, one_line
from swarmctl.render.times import distance
from swarmctl.types import Image, ServiceEntry

ID_WIDTH = 12
ERROR_WIDTH = 30

Columns = Mapping[str, str]
"""Field of the row to header of the table, in order."""

NODE_COLUMNS: Columns = {
    "ID": "ID",
    "Hostname": "HOSTNAME",
    "Status": "STATUS",
    "Availability": "AVAILABILITY",
    "ManagerStatus": "MANAGER STATUS",
    "EngineVersion": "ENGINE VERSION",
}
SERVICE_COLUMNS: Columns = {
    "ID": "ID",
    "Name": "NAME",
    "Mode": "MODE",
    "Replicas": "REPLICAS",
    "Image": "IMAGE",
    "Ports": "PORTS",
}
TASK_COLUMNS: Columns = {
    "ID": "ID",
    "Name": "NAME",
    "Image": "IMAGE",
    "Node": "NODE",
    "DesiredState": "DESIRED STATE",
    "CurrentState": "CURRENT STATE",
    "Error": "ERROR",
    "Ports": "PORTS",
}
IMAGE_COLUMNS: Columns = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "Size": "SIZE",
}
JOIN_TOKEN_COLUMNS: Columns = {
    "Name": "NAME",
    "Role": "ROLE",
    "UsesLeft": "USES LEFT",
    "Expires": "EXPIRES",
    "Labels": "LABELS",
}
OTHER_HEADERS: Columns = {
    "Address": "ADDRESS",
    "CreatedAt": "CREATED AT",
    "Current": "CURRENT",
    "Digest": "DIGEST",
    "Self": "SELF",
    "Token": "TOKEN",
}
"""Headers of fields that no default table shows."""
CONTEXT_COLUMNS: Columns = {
    "Name": "NAME",
    "Description": "DESCRIPTION",
    "Host": "HOST",
    "Nodes": "NODES",
}


def node_row(node: Node, self_id: str) -> Record:
    """A node; the one this client talks to has `Self` true."""
    return Record(
        {
            "ID": node.id,
            "Self": node.id == self_id,
            "Hostname": one_line(node.description.hostname or node.spec.annotations.name),
            "Status": spell(node.status.state).capitalize(),
            "Availability": spell(node.spec.availability).capitalize(),
            "ManagerStatus": _manager_status(node),
            "RoleMessage": one_line(node.role_message),
            "EngineVersion": node.description.engine.engine_version,
            "Address": node.status.address,
        }
    )


def service_row(entry: ServiceEntry, *, trunc: bool = True) -> Record:
    """A service with its counts."""
    service, container = entry.service, entry.service.spec.task.runtime
    return Record(
        {
            "ID": service.id[:ID_WIDTH] if trunc else service.id,
            "Name": service.spec.annotations.name,
            "Mode": mode_name(service.spec.mode),
            "Replicas": replicas(entry),
            "Image": container.image if isinstance(container, ContainerSpec) else "",
            "Ports": ", ".join(ports(service.endpoint.ports if service.endpoint else ())),
        }
    )


def task_row(
    task: Task, *, name: str, node: str, now_ns: int, trunc: bool = True, previous: bool = False
) -> Record:
    """A task; `previous` marks one of the same slot that is not its newest."""
    error = one_line(task.status.error or task.stop_reason)
    if trunc:
        error = ellipsis(error, ERROR_WIDTH)
    since = distance(now_ns - task.status.timestamp_ns).lower()
    return Record(
        {
            "ID": task.id[:ID_WIDTH] if trunc else task.id,
            "Name": f" \\_ {name}" if previous else name,
            "Image": task.container.image,
            "Node": node,
            "DesiredState": spell(task.desired_state).capitalize(),
            "CurrentState": f"{spell(task.status.state).capitalize()} {since} ago",
            "Error": f'"{error}"' if error else "",
            "Ports": ",".join(_host_ports(task)),
        }
    )


def image_rows(image: Image, *, now_ns: int, trunc: bool = True) -> list[Record]:
    """An image: a row per name, one row when it has none."""
    digest = image.id.removeprefix("sha256:")
    return [
        Record(
            {
                "ID": digest[:ID_WIDTH] if trunc else image.id,
                "Repository": repository,
                "Tag": tag,
                "Digest": image.digest,
                "CreatedSince": f"{distance(now_ns - image.created_at_ns)} ago",
                "CreatedAt": timestamp(image.created_at_ns),
                "Size": format_decimal_size(image.size_bytes),
            }
        )
        for repository, tag in [split_name(name) for name in image.names or ("",)]
    ]


def split_name(name: str) -> tuple[str, str]:
    """Repository and tag of an image's name."""
    if not name:
        return "<none>", "<none>"
    repository = name.partition("@")[0]
    head, colon, tag = repository.rpartition(":")
    return (head, tag) if colon and "/" not in tag else (repository, "<none>")


def mode_name(mode: ServiceMode) -> str:
    """The mode as lists and filters write it."""
    match mode:
        case ReplicatedMode():
            return "replicated"
        case GlobalMode():
            return "global"
        case ReplicatedJobMode():
            return "replicated job"
        case GlobalJobMode():
            return "global job"
        case _:
            assert_never(mode)


def replicas(entry: ServiceEntry) -> str:
    """Running and wanted tasks, and the most per node: `2/3 (max 1 per node)`.

    Of a job what it has done besides: `1/1 (5/5 completed)`.
    """
    counts, spec = entry.counts, entry.service.spec
    result = f"{counts.running}/{counts.desired}"
    if isinstance(spec.mode, ReplicatedJobMode):
        return f"{result} ({counts.completed}/{spec.mode.total_completions} completed)"
    if isinstance(spec.mode, GlobalJobMode):
        return f"{result} ({counts.completed}/{counts.desired} completed)"
    if spec.task.placement.max_replicas:
        result += f" (max {spec.task.placement.max_replicas} per node)"
    return result


def ports(configs: Iterable[PortConfig]) -> list[str]:
    """Published ports as `*:8080->80/tcp`; neighbours become one range."""
    published = sorted(
        {
            (place_of(port), port.protocol, port.published_port, port.target_port)
            for port in configs
            if port.publish_mode is PublishMode.INGRESS and port.published_port
        }
    )
    result: list[str] = []
    start = 0
    for end in range(1, len(published) + 1):
        if end < len(published) and _follows(published[end - 1], published[end]):
            continue
        place, protocol, first, target = published[start]
        length = end - 1 - start
        left, right = _span(first, length), _span(target, length)
        result.append(f"{place}:{left}->{right}/{spell(protocol)}")
        start = end
    return result


def newest_first(tasks: Sequence[Task]) -> list[Task]:
    """Tasks by service, slot and node, of each the newest first."""
    by_age = sorted(tasks, key=lambda task: task.meta.created_at_ns, reverse=True)
    return sorted(by_age, key=slot_key)


def slot_key(task: Task) -> tuple[str, str, int, str]:
    """What two attempts at the same work have in common."""
    return (
        task.service_annotations.name,
        task.service_id,
        task.slot,
        "" if task.slot else task.node_id,
    )


def task_name(task: Task) -> str:
    """`service.slot`, or `service.node` for tasks without a slot."""
    service = task.service_annotations.name or task.service_id
    return f"{service}.{task.slot or task.node_id}"


def _manager_status(node: Node) -> str:
    if node.manager_status is None:
        waiting = node.spec.membership is NodeMembership.PENDING
        role_change = node.spec.desired_role is not node.role
        return "Pending" if waiting or role_change else ""
    if node.spec.desired_role is NodeRole.WORKER:
        return "Demoting"
    if node.manager_status.leader:
        return "Leader"
    return "Reachable" if node.manager_status.reachable else "Unreachable"


def _host_ports(task: Task) -> list[str]:
    return [
        f"{place_of(port)}:{port.published_port}->{port.target_port}/{spell(port.protocol)}"
        for port in task.status.port_status.ports
    ]


def _follows(left: tuple[str, int, int, int], right: tuple[str, int, int, int]) -> bool:
    place, protocol, published, target = left
    return right == (place, protocol, published + 1, target + 1)


def _span(first: int, length: int) -> str:
    return f"{first}-{first + length}" if length else str(first)
