"""Containers of the engine on the cluster's networks: what the engine asks, and what is kept.

A container's places stand in a file of the run directory, which says what is in the kernel: written
before an interface is made, changed after it is gone. Formats: docs/formats.md.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from worker.network.local.api import Endpoint, EndpointSpec, LocalNetwork
from worker.network.local.naming import Place
from worker.network.overlay.api import OverlayLink, TaskPlace
from worker.network.overlay.plan import hardware_address

DRIVER = "overlay"
FORMAT = 1
INTERFACE = "ov"
"""Interfaces of containers on overlays: the engine's own networks name theirs eth0 and so on."""

_log = structlog.get_logger()
TellNames = Callable[[Mapping[str, Place]], Awaitable[None]]


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """A container's place on one network. attachment: the id by which the managers know it."""

    attachment: str
    network: LocalNetwork
    spec: EndpointSpec
    interface: str
    addresses: tuple[str, ...]
    """CIDR."""


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A running container that is on networks of the cluster."""

    container: str
    name: str
    netns_path: str
    joined: tuple[Joined, ...] = ()
    format: int = FORMAT


class ClusterNetworks(Protocol):
    """The cluster's networks, for containers of this node. Raises `shoal.errors.SwarmError`s."""

    async def refresh(self, *, patiently: bool = False) -> None:
        """Ask the managers which networks there are. Without an answer the last one holds.

        patiently: wait for a session with a manager, where the node has none yet.
        """
        ...

    def known(self) -> tuple[LocalNetwork, ...]:
        """The networks that there were, and those that containers are on, by name."""
        ...

    async def join(
        self, container: str, name: str, netns_path: str, network: LocalNetwork, spec: EndpointSpec
    ) -> Endpoint:
        """Put a container, whose namespace is there, on a network.

        All or nothing. Raises: PermissionDenied (not attachable), NotFound, ResourceExhausted (no
        address), InvalidArgument, Unavailable (no manager answers).
        """
        ...

    async def leave(self, container: str, network: str) -> None:
        """Take a running container off a network. Raises: NotFound (it is not on it)."""
        ...

    async def release(self, container: str) -> None:
        """The container has ended: give all its addresses back. Idempotent."""
        ...

    def endpoints(self, container: str) -> tuple[Endpoint, ...]:
        """The container's places."""
        ...

    def containers(self) -> frozenset[str]:
        """Those that have a place."""
        ...

    def tell(self, names: TellNames) -> None:
        """Who is to hear of the names on these networks, whenever they change."""
        ...


def place_of(record: ContainerRecord) -> TaskPlace:
    """The container as the data plane sees it."""
    return TaskPlace(
        task_id=record.container,
        netns_path=record.netns_path,
        uplink="",
        links=tuple(
            OverlayLink(network_id=one.network.id, interface=one.interface, addresses=one.addresses)
            for one in record.joined
        ),
        publishes=True,  # its way out is its other networks' business
        named_here=False,
    )


def endpoint_of(container: str, one: Joined) -> Endpoint:
    """A place in the engine's words."""
    found = {":" in address: address.partition("/") for address in one.addresses}
    ipv4, ipv6 = found.get(False, ("", "", "0")), found.get(True, ("", "", "0"))
    return Endpoint(
        id=one.attachment,
        network_id=one.network.id,
        network_name=one.network.name,
        container=container,
        spec=one.spec,
        interface=one.interface,
        mac_address=hardware_address(one.addresses).hex(":"),
        ipv4_address=ipv4[0],
        ipv4_prefix=int(ipv4[2]),
        ipv6_address=ipv6[0],
        ipv6_prefix=int(ipv6[2]),
    )


def free_interface(record: ContainerRecord) -> str:
    """The first name that is free."""
    taken = {one.interface for one in record.joined}
    names = (f"{INTERFACE}{number}" for number in range(len(taken) + 1))
    return next(name for name in names if name not in taken)


class ContainerFiles:
    """One file per container. Blocking, but small."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> dict[str, ContainerRecord]:
        """Every container. A file that cannot be read describes nothing, and is removed."""
        found = {}
        for path in self._directory.glob("*.json") if self._directory.exists() else ():
            try:
                record = msgspec.json.decode(path.read_bytes(), type=ContainerRecord)
                if record.format != FORMAT:
                    raise ValueError(f"its format is {record.format}, this version reads {FORMAT}")
                found[path.stem] = record
            except (OSError, msgspec.MsgspecError, ValueError) as error:
                _log.error("attachment.record_damaged", path=str(path), reason=str(error))
                path.unlink(missing_ok=True)
        return found

    def save(self, record: ContainerRecord) -> None:
        """Raises: OSError, and the one before stays."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self._path(record.container)
        temporary = path.with_suffix(".tmp")
        try:
            temporary.write_bytes(msgspec.json.encode(record))
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def remove(self, container: str) -> None:
        """Idempotent. Raises: OSError."""
        self._path(container).unlink(missing_ok=True)

    def _path(self, container: str) -> Path:
        return self._directory / f"{container}.json"
