"""Overlay networks in the shapes of Docker's API, and who is on them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from shoal.docker.values import OpenMap, Record, record
from shoal.docker.words import timestamp
from shoal.model.defaults import is_terminal
from shoal.model.objects import Network, Node, Service, Task
from shoal.model.specs import NetworkAttachmentSpec
from shoal.model.types import IpamConfig, PortConfig

SCOPE = "swarm"
DRIVER = "overlay"


class Versions(msgspec.Struct, frozen=True):
    """Of the endpoints that nodes are told of: the newest, and what each has in force."""

    newest: int
    by_node: Mapping[str, int]


def network_json(
    network: Network,
    *,
    services: Sequence[Service] | None = None,
    tasks: Sequence[Task] = (),
    nodes: Sequence[Node] = (),
    versions: Versions | None = None,
) -> Record:
    """A network as `GET /networks/{id}` answers; with services (`--verbose`): who is on it."""
    spec = network.spec
    given = network.driver_state.options if network.driver_state is not None else {}
    asked = spec.driver.options if spec.driver is not None else {}
    users: dict[str, Any] = {}
    if services is not None:
        users = {
            "Services": OpenMap(_services(network, services, tasks, nodes)),
            "Containers": OpenMap(_containers(network, tasks, nodes)),
            "Peers": _peers(network, tasks, nodes, versions),
        }
    return Record(
        {
            "Name": spec.annotations.name,
            "Id": network.id,
            "Created": timestamp(network.meta.created_at_ns),
            "Scope": SCOPE,
            "Driver": DRIVER,
            "EnableIPv4": True,
            "EnableIPv6": spec.ipv6_enabled,
            "IPAM": record(
                {
                    "Driver": "default",
                    "Config": [_config(one) for one in network.ipam.configs or spec.ipam.configs],
                }
            ),
            "Internal": spec.internal,
            "Attachable": spec.attachable,
            "Ingress": False,
            "Options": OpenMap({**given, **asked}),
            "Labels": OpenMap(spec.annotations.labels),
            **users,
        },
        absent=[] if users else ["Services", "Containers", "Peers"],
    )


def _config(config: IpamConfig) -> Record:
    return record(
        {"Subnet": config.subnet},
        IPRange=config.ip_range,
        Gateway=config.gateway,
        AuxiliaryAddresses=OpenMap(config.reserved),
    )


def _services(
    network: Network, services: Iterable[Service], tasks: Sequence[Task], nodes: Iterable[Node]
) -> dict[str, Record]:
    hosts = {node.id: node.status.address for node in nodes}
    result: dict[str, Record] = {}
    for service in sorted(services, key=lambda row: row.spec.annotations.name):
        if all(wish.target != network.id for wish in service.spec.task.networks):
            continue
        endpoint = service.endpoint
        held = endpoint.virtual_ips if endpoint is not None else ()
        vips = [_bare(one.address) for one in held if one.network_id == network.id]
        result[service.spec.annotations.name] = record(
            {
                "VIP": vips[0] if vips else "",
                "Ports": _ports(endpoint.ports if endpoint is not None else ()),
                "Tasks": [
                    record(
                        {
                            "Name": task.annotations.name,
                            "EndpointIP": address,
                            "Info": record({"Host IP": hosts.get(task.node_id, "")}),
                        }
                    )
                    for task in tasks
                    if task.service_id == service.id and not is_terminal(task)
                    for address in _address(task, network.id)
                ],
            }
        )
    return result


def _ports(ports: Iterable[PortConfig]) -> list[str]:
    """Docker has texts here."""
    return [f"Target: {port.target_port}, Publish: {port.published_port}" for port in ports]


def _containers(
    network: Network, tasks: Iterable[Task], nodes: Iterable[Node]
) -> dict[str, Record]:
    """Containers that were attached by hand, on whatever node."""
    hosts = {node.id: node.description.hostname for node in nodes}
    found: dict[str, Record] = {}
    for task in _live(network, tasks):
        if isinstance(task.spec.runtime, NetworkAttachmentSpec):
            held = next(one for one in task.networks if one.network_id == network.id)
            by_version = {":" in address: address for address in held.addresses}
            found[task.spec.runtime.container_id] = record(
                {
                    "Name": task.annotations.name,
                    "EndpointID": task.id,
                    "IPv4Address": by_version.get(False, ""),
                    "IPv6Address": by_version.get(True, ""),
                    "Node": hosts.get(task.node_id, task.node_id),
                }
            )
    return found


def _peers(
    network: Network, tasks: Iterable[Task], nodes: Iterable[Node], versions: Versions | None
) -> list[Record]:
    """Nodes on the network; Behind: how many versions of the endpoints each has yet to take up."""
    here = {task.node_id for task in _live(network, tasks)}
    found = []
    for node in sorted(nodes, key=lambda row: (row.description.hostname, row.id)):
        if node.id not in here:
            continue
        fields: dict[str, Any] = {
            "Name": node.description.hostname,
            "IP": node.description.data_path_address or node.status.address,
        }
        if versions is not None:
            applied = versions.by_node.get(node.id, 0)
            fields |= {"Version": applied, "Behind": versions.newest - applied}
        found.append(record(fields))
    return found


def _live(network: Network, tasks: Iterable[Task]) -> Iterator[Task]:
    """Tasks that have a node and hold an address on the network."""
    for task in tasks:
        held = any(one.network_id == network.id for one in task.networks)
        if held and task.node_id and not is_terminal(task):
            yield task


def _address(task: Task, network_id: str) -> list[str]:
    """The task's first address on the network, where it has one."""
    for held in task.networks:
        if held.network_id == network_id and held.addresses:
            return [_bare(held.addresses[0])]
    return []


def _bare(address: str) -> str:
    return address.partition("/")[0]
