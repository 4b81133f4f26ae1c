"""The networks of the node, asynchronously: what the engine calls.

State is in one place each: networks in `networks.json`, what containers hold in the run directory,
the rest in the kernel. Everything blocking runs in one thread, in order. Nothing of the machine is
touched before the first bridge network is made or used; when nothing uses them any more, a clean
end of the process takes all of it away again.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import errno
import secrets
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import msgspec
import structlog

from shoal.clock import Clock
from shoal.errors import (
    Internal,
    InvalidArgument,
    NameConflict,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SwarmError,
    Unavailable,
)
from worker.network.local import hostdns, options, plan
from worker.network.local.api import (
    BRIDGE,
    ContainerNetworking,
    Endpoint,
    EndpointSpec,
    LinkCounters,
    LocalNetwork,
    Sandbox,
)
from worker.network.local.files import Files, Holding
from worker.network.local.holders import Holders
from worker.network.local.kernel import Kernel, machine_subnets
from worker.network.local.names import Names
from worker.network.local.naming import Client, Place
from worker.network.local.nftables import NftError
from worker.network.local.predefined import ID_BYTES, with_predefined
from worker.network.local.reaching import Reaching, cancelled, has_ipv6
from worker.network.local.ruleset import Published
from worker.network.relay.client import Relays

_OPEN_TRIES, _OPEN_PAUSE_S = 50, 0.2
Result = TypeVar("Result")

_log = structlog.get_logger()


class Networks:
    """Implements `worker.network.local.api.LocalNetworks`. Made by `open`, ended by `close`."""

    def __init__(self, networks_file: Path, run_dir: Path, clock: Clock) -> None:
        self._files = Files(networks_file, run_dir / "local")
        self._kernel = Kernel(run_dir / "local" / "netns")
        self._holders = Holders()
        self._relays = Reaching(Relays(run_dir / "relay.sock"), self._holders)
        self._tending: asyncio.Task[None] | None = None
        self._names = Names(run_dir / "resolver.sock", self._moved)
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-networks")
        self._networks: dict[str, LocalNetwork] = {}
        self._holdings: dict[str, Holding] = {}
        self._reserved: dict[str, Endpoint] = {}
        """Endpoints that are being made, by id."""
        self._half_gone: set[str] = set()
        """Containers whose end could not be dealt with to its end."""
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._changing = asyncio.Lock()
        """Held while the list of networks changes."""

    @classmethod
    async def open(cls, networks_file: Path, run_dir: Path, clock: Clock) -> Self:
        """Read what there is. Raises: OSError, Internal when `networks.json` cannot be read."""
        made = cls(networks_file, run_dir, clock)
        try:
            await made._run(made._load)
        except BaseException:
            made._thread.shutdown(wait=False)
            raise
        made._tending = asyncio.create_task(made._relays.tend(made._run), name="relay")
        return made

    async def close(self) -> None:
        """Let go. What containers stand on stays; with none, nothing of ours does."""
        unused = not self._holdings and not self._own_networks()
        await cancelled(self._tending)
        await self._names.close(end=not self._holdings)
        await self._run(partial(self._close_kernel, remove=unused))
        self._thread.shutdown(wait=False)

    async def uninstall(self) -> None:
        """Take everything off the machine: namespaces, links, bridges, rules, the resolver.

        `networks.json` stays. Raises: Unavailable while another process has the networks.
        """
        found = await self._run(self._files.load_holdings)
        await cancelled(self._tending)
        await self._ground()
        await self._names.adopt([])
        await self._names.close(end=True)
        await self._run(partial(self._sort_out, found, {}))
        links = [host for holding in found.values() for host in holding.host_links]
        await self._run(partial(self._kernel.unplug, links))
        await self._run(partial(self._close_kernel, remove=True))
        self._thread.shutdown(wait=False)

    # Networks ---------------------------------------------------------------------------------

    async def refresh(self, *, patiently: bool = False) -> None:
        """Nothing: nobody else makes networks of this node."""

    def list(self) -> tuple[LocalNetwork, ...]:
        """Every network, predefined ones included, by name."""
        return tuple(sorted(self._networks.values(), key=lambda one: (one.name, one.id)))

    def resolve(self, ref: str) -> LocalNetwork:
        """By full id, name, or unique id prefix. Raises: NotFound, InvalidArgument (ambiguous)."""
        if ref in self._networks:
            return self._networks[ref]
        named = [one for one in self._networks.values() if one.name == ref]
        if named:
            return named[0]
        found = [one for one in self._networks.values() if ref and one.id.startswith(ref)]
        if len(found) > 1:
            raise InvalidArgument(
                f"{len(found)} matches found based on ID prefix: network {ref} is ambiguous"
            )
        if not found:
            raise NotFound(f"network {ref} not found")
        return found[0]

    async def create(self, wanted: LocalNetwork) -> LocalNetwork:
        """Make a network; id, time and empty pools are filled in. Result: as made.

        Raises: NameConflict, InvalidArgument, NotFound (driver), PermissionDenied (overlap).
        """
        async with self._changing:
            if any(one.name == wanted.name for one in self._networks.values()):
                raise NameConflict(f"network with name {wanted.name} already exists")
            named = msgspec.structs.replace(
                wanted, id=secrets.token_hex(ID_BYTES), created_at_ns=self._clock.now_ns()
            )
            routes = await self._run(machine_subnets)
            made = options.completed(named, [*self._networks.values()], routes)
            await self._make(made)
            return made

    async def _make(self, made: LocalNetwork) -> None:
        await self._save({**self._networks, made.id: made})
        try:
            if not made.config_only:
                await self._ground()
                await self._run(partial(self._kernel.add_network, made))
        except BaseException:
            await self._save({key: one for key, one in self._networks.items() if key != made.id})
            raise
        self._networks[made.id] = made

    async def remove(self, ref: str) -> LocalNetwork:
        """Remove it. Raises: NotFound, PermissionDenied (predefined, or active endpoints)."""
        async with self._changing:
            network = self.resolve(ref)
            if options.is_predefined(network.name):
                raise PermissionDenied(
                    f"{network.name} is a pre-defined network and cannot be removed"
                )
            users = [one for one in self._networks.values() if one.config_from == network.name]
            if self._endpoints_of(network.id) or users:
                raise PermissionDenied(
                    f"error while removing network: network {network.name} id {network.id} has"
                    " active endpoints"
                )
            del self._networks[network.id]
            try:
                if not network.config_only:
                    await self._ground()
                    await self._run(partial(self._kernel.remove_network, network))
                await self._save(self._networks)
            except BaseException:
                self._networks[network.id] = network
                raise
            return network

    # Containers -------------------------------------------------------------------------------

    async def start(self, wanted: ContainerNetworking) -> Sandbox:
        """Make the container's namespace with all its interfaces, ports and names.

        All or nothing. Idempotent for a container that has its sandbox. Raises: see the Protocol.
        """
        async with self._locks[wanted.container]:
            known = self._holdings.get(wanted.container)
            if known is not None and wanted.container not in self._half_gone:
                return self._sandbox(known)
            if known is not None:
                await self._give_up(wanted.container, known)
            holding = self._plan(wanted)
            try:
                await self._ground()
                holding = await self._run(partial(self._raise_up, holding))
                self._holdings[wanted.container] = holding
                await self._name(holding)
            except BaseException:
                await asyncio.shield(self._give_up(wanted.container, holding))
                raise
            finally:
                for one in holding.endpoints:
                    self._reserved.pop(one.id, None)
            return self._sandbox(self._holdings[wanted.container])

    async def stop(self, container: str) -> None:
        """The container has ended: give its addresses, ports, names and namespace back."""
        async with self._locks[container]:
            holding = self._holdings.get(container)
            if holding is not None:
                self._half_gone.add(container)
                await self._give_up(container, holding)
        if not self._locks[container].locked():
            self._locks.pop(container, None)

    async def connect(self, container: str, network: str, spec: EndpointSpec) -> Endpoint:
        """Put a running container into one more network. Raises: PermissionDenied (is in it)."""
        async with self._locks[container]:
            holding = self._held(container)
            target = self.resolve(network)
            if any(one.network_id == target.id for one in holding.endpoints):
                raise PermissionDenied(
                    f"endpoint with name {holding.wanted.name} already exists in network"
                    f" {target.name}"
                )
            made = self._endpoint(target, container, spec, holding.endpoints)
            try:
                after = plan.with_endpoint(holding, made, spec)
                await self._run(partial(self._plug, holding, after, made))
                self._holdings[container] = after
                try:
                    await self._name(after)
                except BaseException:
                    await asyncio.shield(self._unplug(self._holdings[container], made))
                    raise
            finally:
                self._reserved.pop(made.id, None)
            return made

    async def disconnect(self, container: str, network: str) -> None:
        """Take a running container out of a network. Raises: NotFound (is not in it)."""
        async with self._locks[container]:
            holding, target = self._held(container), self.resolve(network)
            found = [one for one in holding.endpoints if one.network_id == target.id]
            if not found:
                raise NotFound(f"container {container} is not connected to network {target.name}")
            await self._unplug(holding, found[0])
            await self._name(self._holdings[container])

    async def rename(self, container: str, name: str) -> None:
        """The container has another name now: the resolver follows."""
        async with self._locks[container]:
            holding = self._holdings.get(container)
            if holding is None or holding.wanted.name == name:
                return
            wanted = msgspec.structs.replace(holding.wanted, name=name)
            await self._keep(msgspec.structs.replace(holding, wanted=wanted))
            await self._name(self._holdings[container])

    async def place_elsewhere(self, container: str, places: tuple[Place, ...]) -> None:
        """Others have put a running container in these networks, whose names it may ask for."""
        async with self._locks[container]:
            holding = self._held(container)
            wanted = msgspec.structs.replace(holding.wanted, elsewhere=places)
            await self._keep(msgspec.structs.replace(holding, wanted=wanted))
            await self._name(self._holdings[container])

    async def tell_names(self, others: Mapping[str, Place]) -> None:
        """Who has names in such networks, all of them. Raises: Unavailable."""
        await self._names.tell(others)

    def endpoints(self, network: str) -> tuple[Endpoint, ...]:
        """Running containers of a network. Raises: NotFound."""
        return tuple(self._endpoints_of(self.resolve(network).id, made=True))

    def wanted(self, container: str) -> ContainerNetworking | None:
        """What a running container wants of these networks."""
        holding = self._holdings.get(container)
        return None if holding is None else holding.wanted

    def sandbox(self, container: str) -> Sandbox | None:
        """What a running container has now."""
        holding = self._holdings.get(container)
        return None if holding is None else self._sandbox(holding)

    async def stats(self, container: str) -> tuple[LinkCounters, ...]:
        """Counters of each interface. Raises: NotFound."""
        return await self._run(partial(self._kernel.counters, container))

    async def adopt(self, running: Mapping[str, ContainerNetworking]) -> Sequence[str]:
        """After a restart: keep these containers' sandboxes, drop all others.

        Result: containers whose sandbox is gone.
        """
        found = await self._run(self._files.load_holdings)
        if found or self._own_networks():
            try:
                await self._take_over(found, running)
            except SwarmError as error:
                _log.error("network.not_taken_over", reason=str(error))
        return [container for container in running if container not in self._holdings]

    async def _take_over(
        self, found: dict[str, Holding], running: Mapping[str, ContainerNetworking]
    ) -> None:
        known = set(self._networks)
        kept = {
            container: holding
            for container, holding in found.items()
            if container in running
            and known.issuperset(one.network_id for one in holding.endpoints)
        }
        ports = [port for holding in kept.values() for port in self._published(holding)]
        await self._open_when_free(ports)
        self._holdings = await self._run(partial(self._sort_out, found, kept))
        clients = [self._client(holding) for holding in self._holdings.values()]
        try:
            await self._names.adopt([client for client in clients if client is not None])
        except Unavailable as error:
            _log.error("network.no_names", reason=str(error))
        for wanted in running.values():
            if wanted.container in self._holdings:
                await self._finish(wanted)

    async def _open_when_free(self, ports: Sequence[Published]) -> None:
        """The process before this one may need a moment to end. Raises: Unavailable."""
        for left in reversed(range(_OPEN_TRIES)):
            try:
                await self._run(partial(self._kernel.open, self._bridges(), ports))
            except Unavailable:
                if not left:
                    raise
                await asyncio.sleep(_OPEN_PAUSE_S)
            else:
                return

    async def _finish(self, wanted: ContainerNetworking) -> None:
        """Carry out what was interrupted: the container's own record says what holds."""
        container = wanted.container
        present = {one.network_id for one in self._holdings[container].endpoints}
        wished = dict(wanted.networks)
        try:
            for network in present - wished.keys():
                await self.disconnect(container, network)
            for network in wished.keys() - present:
                await self.connect(container, network, wished[network])
            await self.rename(container, wanted.name)
        except SwarmError as error:
            _log.error("network.not_finished", container=container, reason=str(error))

    # In the thread ----------------------------------------------------------------------------

    def _load(self) -> None:
        stored = self._files.load_networks()
        networks = with_predefined(stored, self._clock.now_ns())
        if tuple(networks.values()) != stored:
            self._files.save_networks(tuple(networks.values()))
        self._networks = networks

    def _raise_up(self, holding: Holding) -> Holding:
        """Ports, record, namespace, rules; what fails leaves the rest to `_take_down`."""
        way = plan.leading(holding.endpoints, self._networks)
        ports = self._holders.hold_all(plan.bindings(holding.wanted, way, self._networks))
        holding = msgspec.structs.replace(holding, ports=ports)
        try:
            self._files.save_holding(holding)
            self._kernel.raise_up(holding, self._networks)
            self._publish(plan.published(ports, way))
            self._relays.put(ports, way)
        except BaseException:
            self._take_down(holding)
            raise
        return holding

    def _publish(self, ports: Sequence[Published]) -> None:
        try:
            self._kernel.publish(ports)
        except NftError as error:
            _log.warning("network.rules_were_gone", reason=str(error))
            known = [one for holding in self._holdings.values() for one in self._published(holding)]
            self._kernel.reload(self._bridges(), [*known, *ports])

    def _take_down(self, holding: Holding) -> None:
        self._kernel.unpublish(self._published(holding))
        self._relays.drop(holding.ports)
        self._holders.release_all(holding.ports)
        self._kernel.take_down(holding)
        self._files.remove_holding(holding.wanted.container)

    def _plug(self, before: Holding, after: Holding, made: Endpoint) -> None:
        self._files.save_holding(after)
        try:
            self._kernel.connect(after, made, after.host_links[-1], self._networks)
        except BaseException:
            self._files.save_holding(before)
            raise

    def _unplug_now(self, after: Holding, gone: Endpoint, host: str) -> None:
        self._kernel.disconnect(after, gone, host, self._networks)
        self._files.save_holding(after)

    def _sort_out(
        self, found: Mapping[str, Holding], kept: Mapping[str, Holding]
    ) -> dict[str, Holding]:
        """Hold the ports of what is there, drop all else. Result: what is there, as it is."""
        whole = {}
        self._relays.adopt()
        for container, holding in found.items():
            lacking = self._kernel.lacks(holding)
            if container not in kept or lacking is None:
                _log.info("network.remains_removed", container=container)
                self._take_down(holding)
                continue
            whole[container] = plan.without_links(holding, lacking)
            way = plan.leading(whole[container].endpoints, self._networks)
            for problem in self._relays.hold_again(holding.ports, way):
                _log.warning("network.port_not_held", container=container, reason=problem)
        self._relays.disown_rest()
        self._kernel.drop_strangers(whole)
        return whole

    def _close_kernel(self, *, remove: bool) -> None:
        self._relays.close(end=not self._holdings)
        self._kernel.close(remove=self._bridges() if remove else None)

    # ------------------------------------------------------------------------------------------

    async def _run(self, call: Callable[[], Result]) -> Result:
        """Run something blocking. A cancelled caller does not stop it half-way."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call)
        except OSError as error:  # NetlinkError and NftError are such
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise ResourceExhausted(f"local networks: {error}") from error
            if error.errno in {errno.EPERM, errno.EACCES}:
                raise PermissionDenied(
                    f"local networks need root (CAP_NET_ADMIN, CAP_SYS_ADMIN): {error}"
                ) from error
            raise Internal(f"the machine refused a change to local networks: {error}") from error

    async def _ground(self) -> None:
        """Have the kernel's side. Raises: FailedPrecondition, Unimplemented."""
        if not self._kernel.is_open:
            await self._run(partial(self._kernel.open, self._bridges()))

    async def _save(self, networks: Mapping[str, LocalNetwork]) -> None:
        await self._run(partial(self._files.save_networks, tuple(networks.values())))

    async def _keep(self, holding: Holding) -> None:
        await self._run(partial(self._files.save_holding, holding))
        self._holdings[holding.wanted.container] = holding

    def _own_networks(self) -> builtins.list[LocalNetwork]:
        return [one for one in self._networks.values() if not options.is_predefined(one.name)]

    def _bridges(self) -> builtins.list[LocalNetwork]:
        return [one for one in self._networks.values() if one.driver == BRIDGE]

    def _endpoints_of(self, network: str, *, made: bool = False) -> builtins.list[Endpoint]:
        """Of one network; also those that are being made, unless `made`."""
        found = [
            one
            for holding in self._holdings.values()
            for one in holding.endpoints
            if one.network_id == network
        ]
        if not made:
            known = {one.id for one in found}
            found += [
                one
                for one in self._reserved.values()
                if one.network_id == network and one.id not in known
            ]
        return found

    def _held(self, container: str) -> Holding:
        holding = self._holdings.get(container)
        if holding is None:
            raise NotFound(f"container {container} has no network of its own here")
        return holding

    def _plan(self, wanted: ContainerNetworking) -> Holding:
        made: list[Endpoint] = []
        try:
            for ref, spec in wanted.networks:
                made.append(self._endpoint(self.resolve(ref), wanted.container, spec, made))
        except BaseException:
            for one in made:
                del self._reserved[one.id]
            raise
        return Holding(
            wanted=wanted, endpoints=tuple(made), host_links=tuple(map(plan.host_link, made))
        )

    def _endpoint(
        self,
        network: LocalNetwork,
        container: str,
        spec: EndpointSpec,
        siblings: Sequence[Endpoint],
    ) -> Endpoint:
        """A place in a network, reserved. Raises: SwarmError."""
        if network.driver != BRIDGE:
            raise PermissionDenied(
                f"container cannot be connected to network {network.name}: it is no bridge"
            )
        made = plan.endpoint(
            network, container, spec, identifier=secrets.token_hex(ID_BYTES),
            others=self._endpoints_of(network.id),
            siblings=siblings,
        )  # fmt: skip
        self._reserved[made.id] = made
        return made

    def _published(self, holding: Holding) -> builtins.list[Published]:
        way = plan.leading(holding.endpoints, self._networks)
        return plan.published(holding.ports, way)

    def _sandbox(self, holding: Holding) -> Sandbox:
        path = str(self._kernel.namespace(holding.wanted.container))
        others, node, six = self._holdings, hostdns.read(), has_ipv6()
        return plan.sandbox(holding, self._networks, path, others, node, node_has_ipv6=six)

    def _client(self, holding: Holding) -> Client | None:
        path = str(self._kernel.namespace(holding.wanted.container))
        return plan.client(holding, self._networks, path, hostdns.read().servers)

    async def _name(self, holding: Holding) -> None:
        """Tell the resolver; lead the container's queries to it. Raises: Unavailable, OSError."""
        container = holding.wanted.container
        client = self._client(holding)
        if client is None:
            await self._names.drop(container)
            return
        ports = await self._names.put(client)
        if ports != holding.names_ports:
            await self._run(partial(self._kernel.redirect_names, container, ports))
            await self._keep(msgspec.structs.replace(holding, names_ports=ports))

    def _moved(self, container: str, ports: tuple[int, int]) -> None:
        """The resolver was started again and could not have its old ports."""
        holding = self._holdings.get(container)
        if holding is not None:
            after = msgspec.structs.replace(holding, names_ports=ports)
            self._holdings[container] = after
            self._thread.submit(self._redirect_again, after)

    def _redirect_again(self, holding: Holding) -> None:
        with contextlib.suppress(OSError):  # the container is gone by now
            self._kernel.redirect_names(holding.wanted.container, holding.names_ports)
            self._files.save_holding(holding)

    async def _give_up(self, container: str, holding: Holding) -> None:
        await self._names.drop(container)
        if self._kernel.is_open:
            await self._run(partial(self._take_down, self._holdings.get(container, holding)))
        self._holdings.pop(container, None)
        self._half_gone.discard(container)

    async def _unplug(self, holding: Holding, gone: Endpoint) -> None:
        place = holding.endpoints.index(gone)
        after = plan.without_endpoint(holding, place)
        way_before = plan.leading(holding.endpoints, self._networks)
        way_after = plan.leading(after.endpoints, self._networks)
        if way_before == gone:
            await self._run(partial(self._kernel.unpublish, self._published(holding)))
            await self._run(partial(self._relays.drop, holding.ports))
        host = holding.host_links[place]
        await self._run(partial(self._unplug_now, after, gone, host))
        self._holdings[holding.wanted.container] = after
        if way_before == gone and way_after is not None:
            await self._run(partial(self._publish, self._published(after)))
            await self._run(partial(self._relays.put, after.ports, way_after))
