"""What `info` prints of a node."""

from __future__ import annotations

from typing import Any

from shoal.docker.words import spell
from swarmctl.parsing.units import format_binary_size, format_cpus
from swarmctl.types import NodeInfo


def info_json(node: NodeInfo) -> dict[str, Any]:
    """The node under the names `docker info` uses where it has them."""
    return {
        "ServerVersion": node.version,
        "Name": node.hostname,
        "KernelVersion": node.kernel,
        "OperatingSystem": node.os,
        "Architecture": node.architecture,
        "NCPU": node.nano_cpus / 1_000_000_000,
        "MemTotal": node.memory_bytes,
        "CgroupVersion": node.cgroup_version,
        "StateDir": node.state_dir,
        "MetricsAddress": node.metrics_address,
        "DockerSocket": node.docker_socket,
        "Processes": dict(node.processes),
        "NotReady": dict(node.not_ready),
        "Swarm": {
            "NodeID": node.node_id,
            "NodeAddr": node.advertise_address,
            "LocalNodeState": node.state,
            "ControlAvailable": spell(node.role) == "manager" and node.state == "active",
            "Error": node.error,
            "RemoteManagers": [{"Addr": address} for address in node.managers],
            "Cluster": {"ID": node.cluster_id},
        },
    }


def info_text(node: NodeInfo, *, host: str, context: str) -> str:
    """The node for people; lines without a value are left out."""
    active = node.state == "active"
    lines: list[tuple[int, str, str]] = [
        (0, "Host", host),
        (0, "Context", context),
        (0, "Version", node.version),
        (0, "Name", node.hostname),
        (0, "Swarm", node.state),
        (1, "Error", node.error),
        (1, "NodeID", node.node_id),
        (1, "ClusterID", node.cluster_id),
        (1, "Role", spell(node.role) if active else ""),
        (1, "Node Address", node.advertise_address),
        (1, "Managers", ", ".join(node.managers)),
        (0, "Kernel Version", node.kernel),
        (0, "Operating System", node.os),
        (0, "Architecture", node.architecture),
        (0, "Cgroup Version", node.cgroup_version),
        (0, "CPUs", format_cpus(node.nano_cpus)),
        (0, "Total Memory", format_binary_size(node.memory_bytes)),
        (0, "State Directory", node.state_dir),
        (0, "Metrics", node.metrics_address),
        (0, "Docker API", node.docker_socket),
    ]
    lines += [(1, name, str(pid)) for name, pid in sorted(node.processes.items())]
    if node.processes:
        lines.insert(len(lines) - len(node.processes), (0, "Processes", " "))
    if node.not_ready:
        lines.append((0, "Not Ready", " "))
        lines += [(1, name, reason) for name, reason in sorted(node.not_ready.items())]
    return "".join(
        f"{' ' * depth}{label}: {value}".rstrip() + "\n" for depth, label, value in lines if value
    )
