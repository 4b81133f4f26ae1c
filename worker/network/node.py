"""The network of one node, asynchronously: what the agent calls.

`NodeNetwork` owns two threads: one does everything to devices, routes and nft, in order; the other
forgets tracked connections, which may take long on a busy node. Both live in the network namespace
of the thread that called `open` (the machine's, or the node's own in a lab), so nothing here ever
names a namespace. Invariant: `open` changes nothing that is already as it should be; `close`
without `remove` leaves every task connected and every port balanced.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Sequence
from functools import partial
from typing import Self

import structlog

from shoal.clock import Clock, SystemClock
from shoal.errors import Internal, Unavailable, Unimplemented
from worker.network.api import (
    Attachment,
    LinkStats,
    NetworkSettings,
    Peer,
    PortReport,
    PublishedPort,
)
from worker.network.conntrack import ConntrackSocket, Match
from worker.network.core import Reach, check_settings
from worker.network.fabric import Fabric
from worker.network.listeners import Listener, await_listeners
from worker.network.mesh import Mesh
from worker.network.netlink import NetlinkError
from worker.network.slots import MeshSocket
from worker.network.tasks import TASK_INTERFACE, TaskLinks, everything_of
from worker.network.threads import KernelThread
from worker.network.twins import twin, twin_subnet

_LINGER_S = 5.0
_LINGER_POLL_S = 0.005
_log = structlog.get_logger()


class NodeNetwork:
    """This node's part of the mesh. Made by `open`, ended by `close`."""

    def __init__(self, settings: NetworkSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._kernel = KernelThread("network")
        self._tracker = KernelThread("conntrack")
        self._parts: _Parts | None = None
        self._conntrack: ConntrackSocket | None = None
        self._closed = False
        self._lost: frozenset[str] = frozenset()
        self._to_forget: set[str] = set()

    @classmethod
    async def open(cls, settings: NetworkSettings, *, clock: Clock | None = None) -> Self:
        """Make this node's devices, rules and maps, or adopt those of an earlier process.

        Needs root in the network namespace of the calling thread.
        Raises: InvalidArgument naming a field; Unimplemented naming what the kernel lacks;
        PermissionDenied without CAP_NET_ADMIN.
        """
        check_settings(settings)
        network = cls(settings, clock or SystemClock())
        try:
            await network._tracker.run(network._open_conntrack)
            await network._kernel.run(network._open_parts)
        except BaseException:
            await network.close()
            raise
        _log.info("network.opened", index=settings.index, subnet=settings.subnet)
        for lost in network.lost:
            _log.warning("network.reduced", reason=lost)
        return network

    @property
    def lost(self) -> tuple[str, ...]:
        """What this kernel cannot do as it should, for people."""
        return self._parts.lost if self._parts is not None else ()

    async def set_peers(self, peers: Sequence[Peer]) -> None:
        """Make `peers` (this node may be among them) all the nodes of the mesh.

        Call it before `set_ports` with endpoints on a new peer. Connections to a peer that is gone
        are forgotten, so that their clients are balanced anew; those to a peer that is lost, with
        the next `set_ports`, which takes its tasks out. Raises: InvalidArgument.
        """
        parts, conntrack = self._opened()
        gone = await self._kernel.run(lambda: parts.set_peers(peers))
        for subnet in gone:
            forgotten = await self._tracker.run(partial(conntrack.forget_subnet, subnet))
            _log.info("network.peer_removed", subnet=subnet, connections_forgotten=forgotten)
        lost = frozenset(
            subnet
            for peer in peers
            if peer.lost
            for subnet in (peer.subnet, twin_subnet(peer.subnet))
        )
        self._to_forget = (self._to_forget & lost) | (lost - self._lost)
        self._lost = lost

    async def set_ports(self, ports: Sequence[PublishedPort]) -> PortReport:
        """Make `ports` all that this node publishes, in one transaction.

        When it returns, every new connection is balanced by the new tables and UDP flows to removed
        endpoints are cut: the version may be acknowledged. A port that cannot be served has its
        reason in the report; call again (same argument) to retry it.
        """
        parts, conntrack = self._opened()
        outcome = await self._kernel.run(lambda: parts.mesh.set_ports(ports))
        await self._forget(outcome.forget)
        for subnet in sorted(self._to_forget):
            forgotten = await self._tracker.run(partial(conntrack.forget_subnet, subnet))
            self._to_forget.discard(subnet)
            _log.info("network.peer_lost", subnet=subnet, connections_forgotten=forgotten)
        for (protocol, port), error in outcome.report.errors.items():
            _log.warning("network.port_refused", port=port, protocol=protocol, reason=error)
        return outcome.report

    async def forget_endpoints(self, addresses: Sequence[str]) -> None:
        """Forget all connections to tasks at `addresses`: their node is lost."""
        await self._forget(
            tuple(Match(address=one) for address in addresses for one in (address, twin(address)))
        )

    async def attach(
        self, task_id: str, *, address: str | None = None, interface: str = TASK_INTERFACE
    ) -> Attachment:
        """Make a task's network namespace and link; `address` None takes a free one.

        Idempotent. Raises: InvalidArgument, AlreadyExists (address held by another task),
        ResourceExhausted (subnet full), Unavailable (earlier run of the task not gone yet).
        """
        attachment, early = await self._attach_when_free(task_id, address, interface)
        if early:
            await self._forget(everything_of(attachment.address))
        return attachment

    async def adopt(
        self, task_id: str, address: str, *, interface: str = TASK_INTERFACE
    ) -> Attachment:
        """Take over a running task's link after a restart.

        Raises: NotFound if it is gone; AlreadyExists if the address is held by another task.
        """
        parts, _conntrack = self._opened()
        return await self._kernel.run(lambda: parts.tasks.adopt(task_id, address, interface))

    async def sweep(self) -> list[str]:
        """After all adoptions: drop the namespaces of tasks nobody knows; returns their ids."""
        parts, _conntrack = self._opened()
        return await self._kernel.run(parts.tasks.sweep)

    async def detach(self, task_id: str) -> None:
        """Drop a task's namespace after its last process has ended. Idempotent."""
        parts, _conntrack = self._opened()
        await self._forget(await self._kernel.run(lambda: parts.tasks.detach(task_id)))

    async def await_listeners(
        self, task_id: str, wanted: frozenset[Listener], timeout_s: float
    ) -> frozenset[Listener]:
        """Wait until a task takes traffic on its ports. Result: on which ones it does not by then.

        Raises: Internal when the kernel does not say (it has no `CONFIG_INET_DIAG`, say).
        """
        parts, _conntrack = self._opened()
        sockets = await self._kernel.run(lambda: parts.tasks.sockets(task_id))
        with sockets:
            try:
                return await await_listeners(sockets, wanted, timeout_s)
            except NetlinkError as error:
                raise Internal(f"the kernel does not tell who listens: {error}") from error

    async def stats(self, task_id: str) -> LinkStats:
        """Counters of a task's link, seen from the task. Raises: NotFound."""
        parts, _conntrack = self._opened()
        return await self._kernel.run(lambda: parts.tasks.stats(task_id))

    async def close(self, *, remove: bool = False) -> None:
        """Let go; with `remove`, take every trace of the mesh off this node. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            # In the threads, behind whatever a cancelled caller left running there.
            await self._kernel.run(lambda: self._close_parts(remove=remove))
            await self._tracker.run(self._close_conntrack)
        finally:
            self._kernel.stop()
            self._tracker.stop()

    def _open_parts(self) -> None:
        self._parts = _Parts(self._settings, self._clock)

    def _close_parts(self, *, remove: bool) -> None:
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close(remove=remove)

    def _open_conntrack(self) -> None:
        try:
            self._conntrack = ConntrackSocket()
        except OSError as error:
            raise _no_netfilter(error) from error

    def _close_conntrack(self) -> None:
        conntrack, self._conntrack = self._conntrack, None
        if conntrack is not None:
            conntrack.close()

    def _opened(self) -> tuple[_Parts, ConntrackSocket]:
        if self._parts is None or self._conntrack is None:
            raise Internal("the node's network is closed")
        return self._parts, self._conntrack

    async def _attach_when_free(
        self, task_id: str, address: str | None, interface: str
    ) -> tuple[Attachment, bool]:
        """Attach once the link of an earlier run of the task is gone: the kernel ends it lazily."""
        parts, _conntrack = self._opened()

        def attach() -> tuple[Attachment, bool] | None:
            if parts.tasks.lingers(task_id):
                return None
            return parts.tasks.attach(task_id, address, interface)

        deadline_s = self._clock.monotonic_s() + _LINGER_S
        while (attached := await self._kernel.run(attach)) is None:
            if self._clock.monotonic_s() > deadline_s:
                raise Unavailable(
                    f"task {task_id}: a process still lives in the network namespace of its "
                    "earlier run; end it first"
                )
            await asyncio.sleep(_LINGER_POLL_S)
        return attached

    async def _forget(self, matches: Sequence[Match]) -> None:
        _parts, conntrack = self._opened()
        if matches:
            await self._tracker.run(lambda: conntrack.forget(matches))


class _Parts:
    """What lives in the network thread, opened together and closed in reverse order."""

    def __init__(self, settings: NetworkSettings, clock: Clock) -> None:
        self._settings = settings
        self._nft = _open_nft()
        self.fabric = Fabric(settings, self._nft)
        self.mesh = Mesh(settings, self._nft)
        self.tasks = TaskLinks(settings, self._nft, clock)
        try:
            self.fabric.open()
            self.mesh.open()
            self.tasks.open()
        except BaseException:
            self.close(remove=False)
            raise

    @property
    def lost(self) -> tuple[str, ...]:
        """What this kernel cannot do as it should."""
        return self._nft.features.lost

    def set_peers(self, peers: Sequence[Peer]) -> list[str]:
        """As the fabric's; from then on it is known which of them have tasks with IPv6."""
        own = self._settings
        gone = self.fabric.set_peers(peers)
        reached = {peer.subnet for peer in peers if peer.ipv6 and peer.index != own.index}
        self.mesh.set_reach6(Reach({*reached, own.subnet}) if own.ipv6 else Reach())
        return gone

    def close(self, *, remove: bool) -> None:
        """Undo in reverse order; every step runs even if another fails."""
        with contextlib.ExitStack() as steps:
            steps.callback(self._nft.close)
            for part in (self.fabric, self.mesh, self.tasks):
                steps.callback(part.close)
            if remove:
                for part in (self.fabric, self.mesh, self.tasks):
                    steps.callback(part.remove)


def _open_nft() -> MeshSocket:
    try:
        return MeshSocket()
    except OSError as error:
        raise _no_netfilter(error) from error


def _no_netfilter(error: OSError) -> Exception:
    if error.errno == errno.EPROTONOSUPPORT:
        return Unimplemented("this kernel has no netfilter netlink (nf_tables is missing)")
    return error
