"""What a container stands on while it runs: networks, volumes, other containers' namespaces.

Laid before each start and given back after each end; both can be done again, so what a crash has
interrupted is finished or undone by doing it once more.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NamedTuple, Protocol

import msgspec
import structlog

from engine.containers import networking
from engine.containers.config import Ground, supposed_ground
from engine.containers.container import Container
from engine.containers.records import MountPoint, Record
from engine.containers.requests import EndpointConfig
from engine.containers.service import Containers
from engine.containers.volumes import mount_event, unmount_event
from engine.http.errors import Refused
from shoal.errors import InvalidArgument, NotFound, SwarmError, Unimplemented
from worker.images.model import Image
from worker.network.local import hostdns
from worker.network.local.api import (
    BRIDGE,
    HOST,
    NONE,
    ContainerNetworking,
    EndpointSpec,
    LocalNetworks,
    Sandbox,
)
from worker.network.owners import Owner
from worker.runtime.api import IdMap
from worker.volumes.api import Volumes

_log = structlog.get_logger()
_Return = Callable[[], Awaitable[None]]


class ImageSource(Protocol):
    """What containers need of images; part of `engine.ports.Images`."""

    def resolve(self, ref: str) -> Image:
        """Raises: NotFound `No such image: web:latest`."""
        ...

    def layers(self, image: Image) -> tuple[str, ...]:
        """Directories of the layers, topmost first."""
        ...

    def list(self) -> Sequence[Image]:
        """Every image of the node."""
        ...


class Laid(NamedTuple):
    """What was laid: for the runtime, and what the record keeps of it."""

    ground: Ground
    sandbox: Sandbox | None


class Grounds:
    """Lays and takes up. networks, volumes: None when this node has none."""

    def __init__(
        self,
        containers: Containers,
        images: ImageSource,
        volumes: Volumes | None,
        networks: LocalNetworks | None,
        empty: str,
        *,
        container_dir: Callable[[str], str],
        userns: IdMap | None = None,
    ) -> None:
        """empty: a directory with nothing in it, the only layer of what has no image.

        userns: the ids of containers that do not ask for the node's.
        """
        self._userns = userns
        self._container_dir = container_dir
        self._containers = containers
        self._images = images
        self._volumes = volumes
        self._networks = networks
        self._empty = empty

    def userns(self, record: Record) -> IdMap | None:
        """The ids of a container; None: the node's."""
        return None if record.host.userns_mode == HOST else self._userns

    def supposed(self, record: Record) -> Ground:
        """What one that is only made might find. Raises: NotFound."""
        return supposed_ground(record, self.layers(record), self.userns(record))

    def layers(self, record: Record) -> tuple[str, ...]:
        """Directories of the container's image, topmost first. Raises: NotFound."""
        if not record.image_id:
            return (self._empty,)
        return tuple(self._images.layers(self._images.resolve(record.image_id)))

    def image_bytes(self, record: Record) -> int:
        """Size of the container's image; 0 when it is gone."""
        try:
            return self._images.resolve(record.image_id).size_bytes
        except NotFound:
            return 0

    def network_ids(self) -> dict[str, str]:
        """Ids of the node's networks by name."""
        if self._networks is None:
            return {}
        return {network.name: network.id for network in self._networks.list()}

    def sandbox_now(self, record: Record, sandbox: Sandbox) -> Sandbox:
        """A running container's sandbox as it is."""
        if self._networks is None:
            return sandbox
        return self._networks.sandbox(record.id) or sandbox

    async def adopt(self, containers: Sequence[Container]) -> None:
        """Keep what running containers stand on; everything else is given back."""
        if self._networks is None:
            return
        running = {}
        for container in containers:
            if container.has_process and container.record.sandbox is not None:
                try:
                    wanted = self.networking(container.record)
                except SwarmError as error:  # whom it was linked to is gone
                    _log.warning("container.network_unknown", id=container.id, reason=str(error))
                    continue
                if wanted is not None:
                    running[container.id] = wanted
        for lost in await self._networks.adopt(running):
            _log.error("container.sandbox_lost", id=lost)
        for container in containers:
            sandbox = self._networks.sandbox(container.id) if container.id in running else None
            if sandbox is not None and sandbox != container.record.sandbox:
                await self._containers.note(container, sandbox=sandbox)

    async def lay(self, container: Container) -> Laid:
        """Everything a start needs; all or nothing. Raises: SwarmError."""
        record = container.record
        try:
            sources = await self._mount(record)
            self._tell_mounts(record)
            ground = Ground(
                layers=self.layers(record),
                sources=sources,
                pid_mode=self._shared(record.host.pid_mode, "PID"),
                ipc_mode=self._shared(record.host.ipc_mode, "IPC"),
                userns=self.userns(record),
                own_ids=frozenset(self._own_ids(record)),
            )
            return await self._connect(record, ground)
        except BaseException:
            await self.take_up(container)
            raise

    def _tell_mounts(self, record: Record) -> None:
        for point in record.mounts:
            if point.kind == "volume":
                self._containers.tell(mount_event(point, record))

    async def take_up(self, container: Container) -> None:
        """The container has ended: give back what it held. Idempotent.

        What cannot be given back now is logged and must not keep the rest, nor the end itself: the
        next start of the container, or of the process, tries again.
        """
        record = container.record
        returns: list[_Return] = []
        if self._networks is not None and _has_sandbox(record):
            returns.append(partial(self._networks.stop, record.id))
        await _give_back(record, [*returns, *self._unmounts(record)])

    @asynccontextmanager
    async def mounted(self, container: Container) -> AsyncIterator[dict[str, str]]:
        """Where the content of each mount is, by target, while inside; for one that does not run.

        Its lock is held. Raises: SwarmError.
        """
        try:
            yield await self._mount(container.record)
        finally:
            await _give_back(container.record, self._unmounts(container.record))

    async def rename(self, container: Container) -> None:
        """The container has another name: those who look it up find it by that."""
        if self._networks is not None and container.record.sandbox is not None:
            await self._networks.rename(container.id, container.name)

    def networking(self, record: Record) -> ContainerNetworking | None:
        """What the container wants of the networks; None when it has no part in them."""
        if self._networks is None or not _has_sandbox(record):
            return None
        wished = []
        for name, wish in record.networks.items():
            network = self._networks.resolve(name)
            wished.append((network.id, self.endpoint_spec(record, network.name, wish)))
        return ContainerNetworking(
            container=record.id,
            name=record.name,
            hostname=record.config.hostname,
            domainname=record.config.domainname,
            networks=tuple(wished),
            ports=networking.port_bindings(record.config, record.host),
            dns_servers=tuple(record.host.dns or ()),
        )

    def endpoint_spec(self, record: Record, network: str, wish: EndpointConfig) -> EndpointSpec:
        """One wish of a container in the networks' words. Raises: InvalidArgument, Refused."""
        spec = networking.endpoint_spec(wish, self._links(record, network, wish))
        return spec if network == BRIDGE else _with_alias(spec, record.id[:12])

    def _links(self, record: Record, network: str, wish: EndpointConfig) -> list[tuple[str, str]]:
        texts = [*(wish.links or ())]
        if network == networking.network_of(record.host.network_mode):
            texts += record.host.links or ()
        links = []
        for text in texts:
            ref, alias = networking.split_link(text)
            try:
                other = self._containers.find(ref)
            except NotFound:
                raise InvalidArgument(f"could not get container for {ref}") from None
            if not other.running:
                raise Refused(
                    500, f"Cannot link to a non running container: /{other.name} AS"
                    f" /{record.name}/{alias}"
                )  # fmt: skip
            links.append((other.id, alias))
        return links

    async def _connect(self, record: Record, ground: Ground) -> Laid:
        mode = record.host.network_mode
        if mode == HOST:
            return Laid(ground.replaced(network=HOST, dns_servers=_host_servers(record)), None)
        if mode.startswith("container:"):
            other = self._joined(mode, "network")
            pid = other.status.pid if other.status is not None else 0
            return Laid(
                ground.replaced(
                    netns_path=f"/proc/{pid}/ns/net", etc_from=self._container_dir(other.id)
                ),
                None,
            )
        if self._networks is not None and _has_sandbox(record):
            await self._refresh(self._networks, record)
        wanted = self.networking(record)
        if wanted is None or self._networks is None:
            if mode != NONE:
                raise Unimplemented(
                    f"NetworkMode: {mode}: this node serves no local networks: use none or host"
                )
            return Laid(ground.replaced(network=NONE), None)
        sandbox = await self._networks.start(
            msgspec.structs.replace(wanted, owner=self._owner(record))
        )
        gateway = next((one.gateway for one in sandbox.endpoints if one.gateway), "")
        ground = ground.replaced(
            netns_path=sandbox.netns_path, gateway=gateway, hosts=sandbox.hosts,
            dns_servers=sandbox.dns_servers, dns_search=sandbox.dns_search,
            dns_options=sandbox.dns_options, sysctls=sandbox.sysctls,
            link_env=tuple(self._link_env(record, sandbox)),
        )  # fmt: skip
        return Laid(ground, sandbox)

    async def _refresh(self, networks: LocalNetworks, record: Record) -> None:
        """Ask anew which networks there are, where the container names one that is not known."""
        known = {ref for network in networks.list() for ref in (network.name, network.id)}
        if not known.issuperset(record.networks):
            await networks.refresh(patiently=True)

    def _owner(self, record: Record) -> Owner | None:
        """Whose its network namespace is: of who lends it another namespace, or its own."""
        ids = self.userns(record)
        if ids is None:
            return None
        for mode, namespace in ((record.host.pid_mode, "PID"), (record.host.ipc_mode, "IPC")):
            if mode.startswith("container:"):
                other = self._joined(mode, namespace)
                pid = other.status.pid if other.status is not None else 0
                return msgspec.structs.replace(ids.owner, userns=f"/proc/{pid}/ns/user")
        return ids.owner

    def _own_ids(self, record: Record) -> Iterator[str]:
        if self._volumes is None:
            return
        for point in record.mounts:
            if point.kind == "volume" and self._volumes.get(point.name).own_ids:
                yield point.target

    def _link_env(self, record: Record, sandbox: Sandbox) -> Iterator[str]:
        """Variables of links on the default bridge; elsewhere links are names alone."""
        bridge = next((one for one in sandbox.endpoints if one.network_name == BRIDGE), None)
        for container, alias in bridge.spec.links if bridge is not None else ():
            other = self._containers.find(container).record
            places = other.sandbox.endpoints if other.sandbox is not None else ()
            address = next((one.ipv4_address for one in places if one.network_name == BRIDGE), "")
            if address:
                config = other.config
                yield from networking.link_environment(
                    record.name, alias, address, config.exposed_ports or (), config.env or ()
                )

    def _shared(self, mode: str, namespace: str) -> str:
        """A PID or IPC mode with the id of the container it names. Raises: SwarmError."""
        if not mode.startswith("container:"):
            return mode
        return f"container:{self._joined(mode, namespace).id}"

    def _joined(self, mode: str, namespace: str) -> Container:
        """The running container whose namespace is shared. Raises: NotFound, Refused."""
        other = self._containers.find(mode.removeprefix("container:"))
        if not other.has_process:
            raise Refused(409, f"cannot join {namespace} of a non running container: {other.id}")
        return other

    async def _mount(self, record: Record) -> dict[str, str]:
        """Where the content of each mount is, by target. Raises: SwarmError."""
        sources = {}
        for point in record.mounts:
            if point.kind == "bind":
                await asyncio.to_thread(_find_source, point, self.userns(record))
            elif point.kind == "volume":
                sources[point.target] = await self._mount_volume(point, record)
        return sources

    def _unmounts(self, record: Record) -> list[_Return]:
        if self._volumes is None:
            return []
        volumes = {point.name: point for point in record.mounts if point.kind == "volume"}
        return [partial(self._unmount_volume, volumes[name], record) for name in sorted(volumes)]

    async def _unmount_volume(self, point: MountPoint, record: Record) -> None:
        if self._volumes is not None and await self._volumes.unmount(point.name, record.id):
            self._containers.tell(unmount_event(point, record))

    async def _mount_volume(self, point: MountPoint, record: Record) -> str:
        if self._volumes is None:
            raise Unimplemented(f"Mounts: {point.target}: this node keeps no volumes")
        mounted = await self._volumes.mount(point.name, record.id, subpath=point.subpath)
        return mounted.source


async def _give_back(record: Record, returns: Sequence[_Return]) -> None:
    for give_back in returns:
        try:
            await give_back()
        except (SwarmError, OSError) as error:
            _log.error("container.ground_kept", id=record.id, reason=str(error))


def _has_sandbox(record: Record) -> bool:
    mode = record.host.network_mode
    return mode not in {HOST, NONE} and not mode.startswith("container:")


def _host_servers(record: Record) -> tuple[str, ...]:
    """The node's own, where its resolv.conf is not taken as it is."""
    host = record.host
    asked = host.dns_search or host.dns_options
    return hostdns.read().servers if asked and not host.dns else ()


def _with_alias(spec: EndpointSpec, alias: str) -> EndpointSpec:
    return msgspec.structs.replace(spec, aliases=(*spec.aliases, alias))


def check_sources(points: Sequence[MountPoint]) -> None:
    """A bind of `--mount` must be there already. Blocking. Raises: InvalidArgument."""
    for point in points:
        if point.kind == "bind" and not point.create_source and not os.path.exists(point.source):
            raise InvalidArgument(
                'invalid mount config for type "bind": bind source path does not exist:'
                f" {point.source}"
            )


def _find_source(point: MountPoint, ids: IdMap | None) -> None:
    """The host's side of a bind: made for `-v`, refused for `--mount`. Raises: SwarmError.

    What is made belongs to the container's root.
    """
    check_sources((point,))
    missing, path = [], point.source
    while not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    try:
        for made in reversed(missing):
            _make_source(made, ids)
    except OSError as error:
        raise SwarmError(
            f"error while creating mount source path '{point.source}': mkdir"
            f" {error.filename}: {(error.strerror or '').lower()}"
        ) from None


def _make_source(path: str, ids: IdMap | None) -> None:
    try:
        os.mkdir(path, mode=0o755)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
        return  # made by another container, at the same time
    if ids is not None:
        os.chown(path, *ids.root, follow_symlinks=False)
