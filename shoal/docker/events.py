"""What happens to the cluster's objects, as `docker events` and `swarmctl events` tell it. Pure.

Types, actions and attributes are Docker's, but for `task`, which Docker does not have. An attribute
that changed is there twice, as `replicas.old` and `replicas.new`. Former contents of secrets and
configs are nobody's business: they are not told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from shoal.docker.words import spell
from shoal.model.enums import ActionKind, TaskState
from shoal.model.files import is_former
from shoal.model.objects import AnyObject, Config, Network, Node, Secret, Service, Task
from shoal.model.specs import ReplicatedMode

Told = Config | Network | Node | Secret | Service | Task
Kind = Literal["config", "network", "node", "secret", "service", "task"]
_KINDS: dict[type[Told], Kind] = {
    Config: "config", Network: "network", Node: "node", Secret: "secret", Service: "service",
    Task: "task",
}  # fmt: skip
KINDS: tuple[Kind, ...] = tuple(_KINDS.values())
TASK: Kind = "task"
_ACTIONS = {ActionKind.CREATE: "create", ActionKind.UPDATE: "update", ActionKind.REMOVE: "remove"}


class ClusterEvent(msgspec.Struct, frozen=True):
    """Something that happened to an object. time_ns: 0 of a removal, whose time nobody keeps."""

    type: Kind
    action: str
    actor: str
    attributes: Mapping[str, str]
    time_ns: int


def cluster_event(action: ActionKind, row: AnyObject, old: AnyObject | None) -> ClusterEvent | None:
    """What is told of a change; None of one that is nobody's business."""
    if action not in _ACTIONS or not isinstance(row, Told):
        return None
    if isinstance(row, Secret | Config) and is_former(row):
        return None
    changed = dict(_changed(row, old)) if action is ActionKind.UPDATE else {}
    if isinstance(row, Task) and action is ActionKind.UPDATE and not changed:
        return None
    meta = row.meta
    time_ns = {ActionKind.CREATE: meta.created_at_ns, ActionKind.UPDATE: meta.updated_at_ns}
    return ClusterEvent(
        type=_KINDS[type(row)],
        action=_ACTIONS[action],
        actor=row.id,
        attributes={**_about(row), **changed},
        time_ns=time_ns.get(action, 0),
    )


def _about(row: Told) -> dict[str, str]:
    if isinstance(row, Task):
        status = row.status
        about = {
            "name": row.annotations.name or row.id,
            "service": row.service_annotations.name,
            "serviceID": row.service_id,
            "nodeID": row.node_id,
            "slot": str(row.slot) if row.slot else "",
            "state": spell(status.state),
            "desiredState": spell(row.desired_state),
            "error": status.error,
            "stopReason": row.stop_reason,
            "exitCode": _exit_code(row),
        }
        return {name: text for name, text in about.items() if text}
    if isinstance(row, Node):
        return {"name": row.spec.annotations.name or row.description.hostname}
    return {"name": row.spec.annotations.name}


def _exit_code(task: Task) -> str:
    """How its container ended, where it has."""
    status = task.status
    if status.container is None or status.state not in {TaskState.COMPLETE, TaskState.FAILED}:
        return ""
    return str(status.container.exit_code)


def _changed(row: Told, old: AnyObject | None) -> Iterator[tuple[str, str]]:
    """What of it is another than before."""
    before = _values(old) if isinstance(old, Told) else {}
    for name, value in _values(row).items():
        if before.get(name, value) != value:
            yield f"{name}.old", before[name]
            yield f"{name}.new", value


def _values(row: Told) -> dict[str, str]:
    """What is told when it changes, if it was there before."""
    if isinstance(row, Node):
        return _node_values(row)
    if isinstance(row, Service):
        return _service_values(row)
    if isinstance(row, Task):
        return {
            "state": spell(row.status.state),
            "desiredState": spell(row.desired_state),
            "nodeID": row.node_id,
        }
    return {}


def _service_values(service: Service) -> dict[str, str]:
    mode, status = service.spec.mode, service.update_status
    image = getattr(service.spec.task.runtime, "image", "")
    state = "" if status is None else spell(status.state).replace("-", "_")
    replicas = {"replicas": str(mode.replicas)} if isinstance(mode, ReplicatedMode) else {}
    return {"image": image, "updatestate": state, **replicas}


def _node_values(node: Node) -> dict[str, str]:
    manager: dict[str, str] = {}
    if node.manager_status is not None:
        manager = {
            "leader": str(node.manager_status.leader).lower(),
            "reachability": "reachable" if node.manager_status.reachable else "unreachable",
        }
    return {
        "availability": spell(node.spec.availability),
        "role": spell(node.role),
        "state": spell(node.status.state),
        **manager,
    }
