"""`docker network connect` and `disconnect`: a container's networks after it was made.

A running container changes at once, one that does not run when it starts. The networks change
first, then the record; what a crash leaves between is brought back to the record by the next start
of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from engine.containers import etcfiles
from engine.containers.container import Container
from engine.containers.ground import Grounds
from engine.containers.requests import EndpointConfig
from engine.containers.service import Containers
from engine.http.errors import Refused
from shoal.errors import InvalidArgument, PermissionDenied, SwarmError, Unimplemented
from worker.network.local.api import (
    BRIDGE,
    HOST,
    NONE,
    LocalNetwork,
    LocalNetworks,
    Sandbox,
)

_log = structlog.get_logger()


class Connections:
    """Changes which networks a container is in."""

    def __init__(
        self,
        containers: Containers,
        grounds: Grounds,
        networks: LocalNetworks | None,
        container_dir: Callable[[str], str],
    ) -> None:
        self._containers = containers
        self._grounds = grounds
        self._networks_or_none = networks
        self._container_dir = container_dir

    @property
    def _networks(self) -> LocalNetworks:
        if self._networks_or_none is None:
            raise Unimplemented("this node serves no local networks")
        return self._networks_or_none

    async def connect(self, ref: str, container_ref: str, wish: EndpointConfig) -> None:
        """Put it in. Raises: NotFound, PermissionDenied (it is in it), InvalidArgument."""
        await self._networks.refresh()
        network = self._networks.resolve(ref)
        container = self._own(container_ref)
        async with container.lock:
            _check(container, network)
            if self._key(container, network):
                raise PermissionDenied(
                    f"endpoint with name {container.name} already exists in network {network.name}"
                )
            if network.name == BRIDGE and wish.aliases:
                raise InvalidArgument(
                    "network-scoped alias is supported only for containers in user defined networks"
                )
            record = container.record
            networks = {**record.networks, network.name: wish}
            if container.has_process and record.sandbox is not None:
                await self._connect_now(container, network, wish, networks)
            else:
                await self._containers.save(container, networks=networks)

    async def disconnect(self, ref: str, container_ref: str, *, force: bool = False) -> None:
        """Take it out. force: also from a record of a network that is gone. Raises: Refused."""
        container = self._own(container_ref)
        try:
            network = self._networks.resolve(ref)
        except SwarmError:
            if not force or ref not in container.record.networks:
                raise
            await self._forget(container, ref)
            return
        async with container.lock:
            if network.name == HOST:
                raise PermissionDenied(
                    "container cannot be disconnected from host network or connected to host"
                    " network"
                )
            key = self._key(container, network)
            if not key:
                the = "" if container.has_process else "the "
                raise Refused(
                    500, f"container {container.id} is not connected to {the}network {network.name}"
                )
            kept = {name: one for name, one in container.record.networks.items() if name != key}
            before = container.record.sandbox
            if not container.has_process or before is None:
                await self._containers.save(container, networks=kept)
                return
            await self._networks.disconnect(container.id, network.id)
            await self._note(container, before, kept)

    async def _forget(self, container: Container, name: str) -> None:
        async with container.lock:
            kept = {key: one for key, one in container.record.networks.items() if key != name}
            await self._containers.save(container, networks=kept)

    async def _connect_now(
        self,
        container: Container,
        network: LocalNetwork,
        wish: EndpointConfig,
        networks: dict[str, EndpointConfig],
    ) -> None:
        spec = self._grounds.endpoint_spec(container.record, network.name, wish)
        await self._networks.connect(container.id, network.id, spec)
        try:
            await self._note(container, container.record.sandbox, networks)
        except BaseException:
            with suppress(SwarmError):
                await self._networks.disconnect(container.id, network.id)
            raise

    async def _note(
        self, container: Container, before: Sandbox | None, networks: dict[str, EndpointConfig]
    ) -> None:
        """Write the record, and the container's own files, after its networks have changed."""
        after = self._networks.sandbox(container.id)
        await self._containers.save(container, networks=networks, sandbox=after)
        if before is None or after is None:
            return
        directory = Path(self._container_dir(container.id))
        try:
            await asyncio.to_thread(_rewrite, directory, before, after)
        except OSError as error:
            _log.warning("container.etc_not_written", id=container.id, reason=str(error))

    def _key(self, container: Container, network: LocalNetwork) -> str:
        """What the container's record calls the network; empty: it is not in it."""
        names = container.record.networks
        return next((key for key in (network.name, network.id) if key in names), "")

    def _own(self, ref: str) -> Container:
        container = self._containers.find(ref)
        if container.task:
            raise Refused(
                409,
                f"container {container.name} is a task of a service: change the service instead",
            )
        return container


def _check(container: Container, network: LocalNetwork) -> None:
    """Source: moby daemon/container_operations.go, runconfig/errors.go."""
    mode = container.record.host.network_mode
    if container.record.removing or container.record.dead:
        raise Refused(409, f"Container {container.id} is marked for removal and cannot be connected"
                           " or disconnected to the network")  # fmt: skip
    if mode.startswith("container:"):
        raise InvalidArgument(
            "container sharing network namespace with another container or host cannot be connected"
            " to any other network"
        )
    if HOST in {mode, network.name}:
        raise PermissionDenied(
            "container cannot be disconnected from host network or connected to host network"
        )
    if NONE in container.record.networks or network.name == NONE:
        raise InvalidArgument(
            "container cannot be connected to multiple networks with one of the networks in private"
            " (none) mode"
        )


def _rewrite(directory: Path, before: Sandbox, after: Sandbox) -> None:
    """In place: the container has these very files mounted. Raises: OSError."""
    _write(
        directory / "hosts",
        lambda text: etcfiles.hosts(
            text,
            {address for address, _ in before.hosts} - {address for address, _ in after.hosts},
            [line for line in after.hosts if line not in before.hosts],
        ),
    )
    if before.dns_servers != after.dns_servers:
        named = "ndots:0" in after.dns_options
        _write(
            directory / "resolv.conf",
            lambda text: etcfiles.resolver(text, after.dns_servers, named=named),
        )


def _write(path: Path, change: Callable[[str], str]) -> None:
    with path.open("r+", encoding="utf-8", errors="surrogateescape") as file:
        content = change(file.read())
        file.seek(0)
        file.write(content)
        file.truncate()
