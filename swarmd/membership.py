"""Init, restore, join, leave and unlock: the ways a node's membership changes. One at a time.

Each runs to its end or to its undoing even if its caller goes away: a half-made cluster is never
left behind by an impatient client.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog
from typing_extensions import override

from manager.ca.autolock import WantedLock
from manager.ca.core import ClusterSecrets, new_cluster_secrets
from shoal.clock import Clock
from shoal.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    SwarmError,
    Unavailable,
)
from shoal.ids import ClusterId, NodeId, new_id
from shoal.security.identity import NodeIdentity, make_identity
from shoal.security.keys import make_csr, make_key
from shoal.security.lock import LOCKED_TEXT
from shoal.security.roles import PeerIdentity, Role
from shoal.security.root import RootCA
from shoal.security.tokens import JoinToken, parse_join_token
from shoal.security.unlock import UnlockKey, make_unlock_key
from shoal.settings.node import NodeConfig
from shoal.wire.objects import entry_to_bytes
from swarmd import worker_client
from swarmd.addresses import (
    DEFAULT_PORT,
    HostPort,
    IpAddress,
    NodeAddresses,
    join_host_port,
    resolve,
    split_host_port,
)
from swarmd.ca_client import Applicant, apply_for_identity
from swarmd.children import Child
from swarmd.control_client import ClusterClient
from swarmd.core import InitPlan, InitWish, NewNode, first_entry, parse_availability, plan_init
from swarmd.interfaces import machine_addresses
from swarmd.node import LocalNode
from swarmd.restoring import (
    Newcomer,
    ReceivedBackup,
    RestoredCluster,
    receive,
    restore_blocking,
)
from swarmd.store import ManagerStore
from swarmd.telemetry_client import readiness
from swarmd.upstream import Upstream

MANAGER_READY_TIMEOUT_S = 60.0
STEP_DOWN_TIMEOUT_S = 20.0
"""For a manager to be let go by the others."""
REMOTE_ADDRESSES_MAX = 16
_POLL_PERIOD_S = 0.05

ResultT = TypeVar("ResultT")

_log = structlog.get_logger()


class JoinWish(msgspec.Struct, frozen=True):
    """What the user asked of join; empty means the default."""

    remote_addresses: tuple[str, ...]
    token: str
    advertise_address: str = ""
    listen_address: str = ""
    data_path_address: str = ""
    availability: int = 0


class RestoreWish(msgspec.Struct, frozen=True):
    """What the user asked of restore; empty means the default. Not shown by repr.

    ca_key: of the cluster's root, PEM, where the backup does not hold it.
    """

    advertise_address: str = ""
    listen_address: str = ""
    data_path_address: str = ""
    availability: int = 0
    ca_key: bytes = b""

    @override
    def __repr__(self) -> str:
        return "RestoreWish(...)"


class NewCluster(msgspec.Struct, frozen=True):
    """What init made. unlock_key: None without autolock."""

    identity: NodeIdentity
    secrets: ClusterSecrets
    advertise_address: str
    unlock_key: UnlockKey | None = None


class ProcessPair(msgspec.Struct, frozen=True):
    """The node's processes and how to reach them."""

    manager: Child
    worker: Child
    manager_upstream: Upstream
    worker_upstream: Upstream


class MembershipChanges:
    """Carries out init, join and leave on the local node."""

    def __init__(
        self,
        node: LocalNode,
        processes: ProcessPair,
        *,
        hostname: str,
        clock: Clock,
        store: ManagerStore,
        after_unlock: Callable[[], None],
    ) -> None:
        """after_unlock: what is left to do before the processes of an unlocked node. Blocking."""
        self._store = store
        self._after_unlock = after_unlock
        self._node = node
        self._processes = processes
        self._hostname = hostname
        self._clock = clock
        self._task: asyncio.Task[object] | None = None
        self._receiving = False

    async def init(self, wish: InitWish) -> NewCluster:
        """Make a new cluster with this node as its first manager.

        Raises: FailedPrecondition if it is in one, InvalidArgument, Unavailable if the manager
        does not come up; then nothing remains.
        """
        return await self._alone(lambda: self._init(wish))

    async def restore(self, wish: RestoreWish, chunks: AsyncIterator[bytes]) -> RestoredCluster:
        """Make this node the only manager of the cluster in a backup.

        chunks: the backup's bytes. Raises: as `init`; FailedPrecondition for a backup that cannot
        be restored; what `chunks` raises. Then nothing remains.
        """
        self._refuse_busy()
        self._refuse_member()
        self._store.require_log("restore")
        self._receiving = True
        try:
            received = await receive(chunks)
        finally:
            self._receiving = False
        if self._node.changing:
            received.close()
        return await self._alone(lambda: self._restore(wish, received))

    async def join(self, wish: JoinWish) -> NodeIdentity:
        """Enter a cluster. Raises what its managers refuse with; then nothing remains."""
        return await self._alone(lambda: self._join(wish))

    async def leave(self, *, force: bool) -> None:
        """Leave the cluster: containers and data path are removed, then what makes it a member.

        A manager is demoted first. Raises: FailedPrecondition if it is in none, or if the other
        managers cannot go on without it and `force` is not set.
        """
        await self._alone(lambda: self._leave(force=force))

    async def unlock(self, unlock_key: UnlockKey) -> None:
        """Open a locked node and start its manager.

        Raises: FailedPrecondition if it is not locked, PermissionDenied for a wrong key, and what
        keeps an unlocked manager from starting.
        """
        await self._alone(lambda: self._unlock(unlock_key))

    async def finish(self) -> None:
        """Undo or end what is under way: swarmd stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _alone(self, change: Callable[[], Awaitable[ResultT]]) -> ResultT:
        self._refuse_busy()
        self._node.changing = True

        async def run() -> ResultT:
            try:
                return await change()
            finally:
                self._node.changing = False
                self._node.changed.set()

        task = asyncio.create_task(run(), name="membership")
        task.add_done_callback(_note_failure)
        self._task = task
        return await asyncio.shield(task)

    async def _init(self, wish: InitWish) -> NewCluster:
        self._refuse_member()
        machine = machine_addresses()
        addresses = resolve(
            wish.advertise_address, wish.listen_address, wish.data_path_address, machine=machine
        )
        plan = plan_init(wish, addresses)
        _check_bindable(addresses.listen)
        await self._store.check_init(wish)
        cluster = await self._begin(lambda: self._make_cluster(plan))
        _log.info("cluster.created", cluster_id=cluster.identity.peer.cluster_id)
        return cluster

    async def _restore(self, wish: RestoreWish, received: ReceivedBackup) -> RestoredCluster:
        try:
            self._refuse_member()
            addresses = resolve(
                wish.advertise_address,
                wish.listen_address,
                wish.data_path_address,
                machine=machine_addresses(),
            )
            availability = parse_availability(wish.availability)
            _check_bindable(addresses.listen)
            config = _node_config(addresses, (), availability.name.lower())
            newcomer = Newcomer(self._hostname, addresses, availability, config)
            now_ns = self._clock.now_ns()
            return await self._begin(
                lambda: restore_blocking(
                    self._node, received, newcomer, ca_key=wish.ca_key, now_ns=now_ns
                )
            )
        finally:
            received.close()

    async def _begin(self, make: Callable[[], ResultT]) -> ResultT:
        """Make this node a cluster's first manager and start it. On failure all is undone.

        make: puts everything on disk, the identity last. Blocking.
        """
        try:
            made = await _whole(make)
            self._processes.manager.start()
            await self._wait_for_manager()
        except BaseException:
            await self._processes.manager.stop()
            await _whole(self._node.forget_blocking)
            raise
        await self._reload_worker()
        return made

    def _make_cluster(self, plan: InitPlan) -> NewCluster:
        """Everything on disk, the identity last. Blocking."""
        now_ns = self._clock.now_ns()
        who = NewNode(NodeId(new_id()), ClusterId(new_id()), self._hostname)
        secrets = new_cluster_secrets(now_ns=now_ns)
        key_pem = make_key()
        root = RootCA(secrets.root_certificate_pem, secrets.root_key_pem)
        certificate_pem = root.sign(
            make_csr(key_pem),
            PeerIdentity(who.node_id, Role.MANAGER, who.cluster_id),
            now_ns=now_ns,
            validity_s=plan.certificate_validity_s,
        )
        identity = make_identity(certificate_pem, key_pem, secrets.root_certificate_pem)
        unlock_key = make_unlock_key() if plan.spec.autolock_managers else None
        entry = first_entry(plan, who, secrets, now_ns=now_ns, unlock_key=unlock_key)
        config = _node_config(plan.addresses, (), plan.availability.name.lower())
        config = msgspec.structs.replace(config, store=self._store.url)
        self._node.become_blocking(
            identity, config, lock=WantedLock(unlock_key, 0), bootstrap=entry_to_bytes(entry)
        )
        return NewCluster(identity, secrets, plan.addresses.advertise.render(), unlock_key)

    async def _wait_for_manager(self) -> None:
        manager = self._processes.manager
        reason, restarts = manager.why_not(), manager.restarts
        try:
            async with asyncio.timeout(MANAGER_READY_TIMEOUT_S):
                while True:
                    answer = await readiness(self._processes.manager_upstream)
                    if answer.ready:
                        return
                    reason = answer.reason
                    if answer.stuck:
                        raise FailedPrecondition(reason)
                    if manager.restarts > restarts:
                        raise Unavailable(
                            f"the manager could not start: its process {manager.last_exit}; "
                            "swarmd's log has the reason"
                        )
                    await asyncio.sleep(_POLL_PERIOD_S)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the manager was not ready within {MANAGER_READY_TIMEOUT_S:g} s: {reason}"
            ) from None

    async def _join(self, wish: JoinWish) -> NodeIdentity:
        self._refuse_member()
        token = parse_join_token(wish.token)
        applicant = Applicant(self._hostname, parse_availability(wish.availability))
        remotes = _remotes(wish.remote_addresses)
        # Resolved before the cluster hears of us, so that a typing error leaves no node behind.
        addresses = None
        if wish.advertise_address:
            addresses = _resolve_wish(wish, wish.advertise_address)
        else:
            _resolve_wish(wish, "127.0.0.1")
        identity, host, port = await _apply(remotes, token, applicant)
        if addresses is None:
            source = await _source_address(host, port)
            addresses = _resolve_wish(wish, str(source))
        managers = (join_host_port(host, port), *(join_host_port(*remote) for remote in remotes))
        config = _node_config(
            addresses, tuple(dict.fromkeys(managers)), applicant.availability.name.lower()
        )
        await self._become(identity, config)
        await self._reload_worker()
        _log.info("cluster.joined", cluster_id=identity.peer.cluster_id, role=identity.peer.role)
        return identity

    async def _become(self, identity: NodeIdentity, config: NodeConfig) -> None:
        """Enter the cluster; a manager when it votes. On failure all of it is undone."""
        config = msgspec.structs.replace(config, store=self._store.url)
        try:
            await self._store.check_join(identity)
            lock = None
            if identity.peer.role is Role.MANAGER:
                cluster = ClusterClient(config.managers, identity)
                lock = await cluster.wanted_lock(timeout_s=STEP_DOWN_TIMEOUT_S)
            await _whole(lambda: self._node.become_blocking(identity, config, lock=lock))
            if self._node.membership.is_manager:
                self._processes.manager.start()
                await self._wait_for_manager()
        except BaseException:
            await self._processes.manager.stop()
            await asyncio.shield(self._withdraw(identity, config))
            await _whole(self._node.forget_blocking)
            raise

    async def _withdraw(self, identity: NodeIdentity, config: NodeConfig) -> None:
        """Leave no member and no node behind in the cluster, as far as it can be reached."""
        cluster = ClusterClient(config.managers, identity)
        try:
            if identity.peer.role is Role.MANAGER:
                await cluster.demote(timeout_s=STEP_DOWN_TIMEOUT_S)
            await cluster.remove(timeout_s=STEP_DOWN_TIMEOUT_S)
        except SwarmError as error:
            _log.error(
                "join.not_undone",
                node_id=identity.peer.node_id,
                reason=error.message,
                remedy="`swarmctl node demote` and `swarmctl node rm --force` it on a manager",
            )

    async def _unlock(self, unlock_key: UnlockKey) -> None:
        node = self._node
        if not node.membership.locked:
            raise FailedPrecondition("swarm is not locked")
        await _whole(lambda: node.load_blocking(unlock_key))
        try:
            if node.membership.error:
                raise FailedPrecondition(node.membership.error)
            await _whole(self._after_unlock)
        except BaseException:
            node.lock_again()
            raise
        _log.info("node.unlocked")
        self._processes.manager.start()
        await self._reload_worker()
        # It may take its time until enough managers are unlocked to lead; only that it starts.
        await self._processes.manager_upstream.channel(MANAGER_READY_TIMEOUT_S)

    async def _leave(self, *, force: bool) -> None:
        membership = self._node.membership
        if not membership.is_member:
            raise FailedPrecondition("This node is not part of a cluster.")
        problem = LOCKED_TEXT if membership.locked else membership.error
        if problem and not force:
            raise FailedPrecondition(f"{problem}; `--force` leaves all the same")
        if membership.is_manager:
            await self._step_down(force=force)
        await self._remove_tasks(force=force)
        await self._processes.manager.stop()
        await _whole(self._node.forget_blocking)
        await self._reload_worker()
        _log.info("cluster.left")

    async def _step_down(self, *, force: bool) -> None:
        """Let the other managers go on without this one, before it goes."""
        membership = self._node.membership
        if membership.identity is None:
            return
        cluster = ClusterClient(membership.managers, membership.identity)
        try:
            await cluster.demote(timeout_s=STEP_DOWN_TIMEOUT_S)
        except SwarmError as error:
            if not force:
                raise FailedPrecondition(
                    "You are attempting to leave the swarm on a node that is participating as a "
                    "manager. Removing the last manager erases all current state of the swarm. "
                    f"Use `--force` to ignore this message. ({error.message})"
                ) from error
            _log.warning("leave.not_demoted", reason=error.message)

    async def _remove_tasks(self, *, force: bool) -> None:
        try:
            await worker_client.remove_tasks(self._processes.worker_upstream)
        except SwarmError as error:
            if not force:
                await self._reload_worker()  # its agent may have been stopped
                raise Unavailable(
                    f"the containers of this node could not be removed ({error.message}): try "
                    "again, or leave with --force and remove them yourself"
                ) from error
            _log.warning("leave.tasks_not_removed", reason=error.message)

    async def _reload_worker(self) -> None:
        """Make the worker know what the node is now; a worker that cannot is started anew."""
        try:
            await worker_client.reload(self._processes.worker_upstream, self._node.lock.keys)
        except SwarmError as error:
            _log.warning("worker.not_reloaded", reason=error.message)
            await self._processes.worker.restart()

    def _refuse_busy(self) -> None:
        if self._node.changing or self._receiving:
            raise FailedPrecondition(
                "another init, restore, join or leave is under way on this node: wait for its end"
            )

    def _refuse_member(self) -> None:
        if self._node.membership.is_member:
            raise FailedPrecondition(
                'This node is already part of a cluster. Use "swarmctl leave" to leave it and '
                "enter another one."
            )


async def _whole(work: Callable[[], ResultT]) -> ResultT:
    """Run blocking `work` in a thread; a cancellation waits for its end, so none is half done."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _note_failure(task: asyncio.Task[object]) -> None:
    """The caller may have gone away: then nobody else sees how it ended."""
    if not task.cancelled() and task.exception() is not None:
        _log.warning("membership.unchanged", reason=str(task.exception()))


def _resolve_wish(wish: JoinWish, advertise: str) -> NodeAddresses:
    return resolve(
        advertise, wish.listen_address, wish.data_path_address, machine=machine_addresses()
    )


def _node_config(
    addresses: NodeAddresses, managers: tuple[str, ...], availability: str
) -> NodeConfig:
    return NodeConfig(
        advertise_address=addresses.advertise.render(),
        listen_address=addresses.listen.render(),
        data_path_address=str(addresses.data_path),
        managers=managers,
        availability=availability,
    )


def _remotes(texts: tuple[str, ...]) -> list[tuple[str, int]]:
    if not texts:
        raise InvalidArgument("remote address: give the HOST:PORT of a manager")
    if len(texts) > REMOTE_ADDRESSES_MAX:
        raise InvalidArgument(f"remote addresses: {len(texts)}, at most {REMOTE_ADDRESSES_MAX}")
    split = (split_host_port("remote address", text) for text in texts)
    return [(host, DEFAULT_PORT if port is None else port) for host, port in split]


async def _apply(
    remotes: list[tuple[str, int]], token: JoinToken, applicant: Applicant
) -> tuple[NodeIdentity, str, int]:
    """Ask one manager after the other; only those that cannot be reached are passed over."""
    unreachable: list[str] = []
    for host, port in remotes:
        try:
            return await apply_for_identity(host, port, token, applicant), host, port
        except (Unavailable, DeadlineExceeded) as error:
            _log.warning("join.unreachable", address=f"{host}:{port}", reason=error.message)
            address = join_host_port(host, port)
            text = error.message
            unreachable.append(text if address in text else f"{address}: {text}")
    raise Unavailable(f"no manager could be reached: {'; '.join(unreachable)}")


async def _source_address(host: str, port: int) -> IpAddress:
    """The address this machine uses towards a manager. No packet is sent."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, kind, protocol, _, target = found[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(target)
        return ipaddress.ip_address(probe.getsockname()[0].partition("%")[0])


def _check_bindable(address: HostPort) -> None:
    """Refuse a listen address that is taken or is not this machine's, before anything is made."""
    family = socket.AF_INET6 if address.host.version == 6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((str(address.host), address.port))
            probe.listen(1)
        except OSError as error:
            raise FailedPrecondition(
                f"listen address: {address.render()} cannot be used ({error.strerror}): free it, "
                "or choose another with --listen-addr"
            ) from error
