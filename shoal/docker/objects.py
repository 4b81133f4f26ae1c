"""Rows in the shapes of Docker's API, for the API and for `--format`.

Fields that Docker leaves out when empty are left out here, and stay known to templates as absent.
"""

from __future__ import annotations

import base64
from typing import Any

import msgspec

from shoal.docker.specs import (
    driver_json,
    endpoint_spec_json,
    generic_json,
    ports_json,
    resources_json,
    service_spec_json,
    task_spec_json,
)
from shoal.docker.values import OpenMap, Record, compact, record
from shoal.docker.words import spell, timestamp
from shoal.model.defaults import drain_deadline_ns
from shoal.model.objects import Node, Service, Task
from shoal.model.specs import NodeSpec
from shoal.model.types import (
    Endpoint,
    Meta,
    NetworkAttachment,
    TaskStatus,
    UpdateStatus,
)


class ServiceCounts(msgspec.Struct, frozen=True):
    """Tasks of a service by what matters in a list."""

    running: int = 0
    desired: int = 0
    completed: int = 0


def service_json(service: Service, counts: ServiceCounts | None = None) -> Record:
    """A service as `GET /services/{id}` answers."""
    status = None
    if counts is not None:
        status = record(
            {
                "RunningTasks": counts.running,
                "DesiredTasks": counts.desired,
                "CompletedTasks": counts.completed,
            }
        )
    return record(
        {**_meta(service.id, service.meta), "Spec": service_spec_json(service.spec)},
        PreviousSpec=service.previous_spec and service_spec_json(service.previous_spec),
        Endpoint=_endpoint(service.endpoint),
        UpdateStatus=service.update_status and _update_status(service.update_status),
        ServiceStatus=status,
        JobStatus=service.job_status
        and record(
            {
                "JobIteration": _iteration(service.job_status.iteration),
                "LastExecution": timestamp(service.job_status.last_execution_at_ns),
            }
        ),
    )


def task_json(task: Task) -> Record:
    """A task as `GET /tasks/{id}` answers. Of a job's first iteration the number is left out."""
    return compact(
        **_meta(task.id, task.meta),
        Labels=OpenMap(task.annotations.labels),
        Spec=task_spec_json(task.spec),
        ServiceID=task.service_id,
        Slot=task.slot or None,
        NodeID=task.node_id or None,
        Status=_status(task.status),
        DesiredState=spell(task.desired_state),
        NetworksAttachments=[_attachment(item) for item in task.networks] or None,
        GenericResources=generic_json(task.assigned_generic_resources) or None,
        JobIteration=None if task.job_iteration is None else _iteration(task.job_iteration),
        Name=task.annotations.name or None,
        StopReason=task.stop_reason or None,
    )


def node_json(node: Node) -> Record:
    """A node as `GET /nodes/{id}` answers."""
    description = node.description
    manager = None
    if node.manager_status is not None:
        manager = record(
            {
                "Reachability": "reachable" if node.manager_status.reachable else "unreachable",
                "Addr": node.manager_status.address,
            },
            Leader=node.manager_status.leader,
        )
    return record(
        {
            **_meta(node.id, node.meta),
            "Spec": node_spec_json(node.spec),
            "Description": record(
                {
                    "Hostname": description.hostname,
                    "Platform": record(
                        {
                            "Architecture": _machine(description.platform.architecture),
                            "OS": description.platform.os,
                        }
                    ),
                    "Resources": resources_json(description.resources),
                    "Engine": record(
                        {"EngineVersion": description.engine.engine_version},
                        Labels=OpenMap(description.engine.labels),
                        Plugins=[driver_json(item) for item in description.engine.plugins],
                    ),
                },
                TLSInfo=description.trust_root
                and record({"TrustRoot": description.trust_root.decode(errors="replace")}),
                NetworkKeys=[
                    record(
                        {
                            "Generation": key.generation,
                            "PublicKey": base64.b64encode(key.public_key).decode(),
                        }
                    )
                    for key in description.network_keys
                ],
            ),
            "Status": record(
                {"State": spell(node.status.state), "Addr": node.status.address},
                Message=node.status.message,
            ),
        },
        ManagerStatus=manager,
        RoleMessage=node.role_message,
        DrainUntil=node.drain_until_ns and timestamp(node.drain_until_ns),
    )


_MACHINES = {"amd64": "x86_64", "arm64": "aarch64", "arm": "armv7l", "386": "i686"}


def _machine(architecture: str) -> str:
    """A node's architecture as its kernel calls it, which Docker shows of nodes."""
    return _MACHINES.get(architecture, architecture)


def node_spec_json(spec: NodeSpec) -> Record:
    """A node's spec."""
    return record(
        {
            "Labels": OpenMap(spec.annotations.labels),
            "Role": spell(spec.desired_role),
            "Availability": spell(spec.availability),
        },
        Name=spec.annotations.name,
        Drain=spec.drain and record({"Deadline": drain_deadline_ns(spec.drain)}),
    )


def _meta(object_id: str, meta: Meta) -> dict[str, Any]:
    return {
        "ID": object_id,
        "Version": record({"Index": meta.version.index}),
        "CreatedAt": timestamp(meta.created_at_ns),
        "UpdatedAt": timestamp(meta.updated_at_ns),
    }


def _update_status(status: UpdateStatus) -> Record:
    return record(
        {"State": spell(status.state).replace("-", "_"), "Message": status.message},
        StartedAt=status.started_at_ns and timestamp(status.started_at_ns),
        CompletedAt=status.completed_at_ns and timestamp(status.completed_at_ns),
    )


def _endpoint(endpoint: Endpoint | None) -> Record:
    """What the allocator gave; nothing until it did."""
    if endpoint is None:
        return record({"Spec": compact(Mode=None, Ports=None)}, Ports=None, VirtualIPs=None)
    return record(
        {"Spec": endpoint_spec_json(endpoint.spec)},
        Ports=ports_json(endpoint.ports),
        VirtualIPs=[
            record({"NetworkID": item.network_id}, Addr=item.address)
            for item in endpoint.virtual_ips
        ],
    )


def _iteration(number: int) -> Record:
    return compact(Index=number or None)


def _attachment(attachment: NetworkAttachment) -> Record:
    return record(
        {"Network": record({"ID": attachment.network_id})}, Addresses=list(attachment.addresses)
    )


def _status(status: TaskStatus) -> Record:
    container = None
    if status.container is not None:
        container = record(
            {
                "ContainerID": status.container.container_id,
                "PID": status.container.pid,
                "ExitCode": status.container.exit_code,
            }
        )
    return record(
        {
            "Timestamp": timestamp(status.timestamp_ns),
            "State": spell(status.state),
            "Message": status.message,
            "PortStatus": record({}, Ports=ports_json(status.port_status.ports)),
        },
        Err=status.error,
        ContainerStatus=container,
        Files=list(status.file_ids),
    )
