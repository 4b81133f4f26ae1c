"""The state in a log of our own, replicated among the managers by Raft."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Self

import grpc
import structlog

from manager.backends.interface import HandOver, Site
from manager.consensus.changes import MembershipChanges
from manager.consensus.driver import RaftDriver
from manager.consensus.recovery import Place, Recovery, recover
from manager.leadership.interfaces import NoLeader
from manager.leadership.joining import NotJoined, ask_to_join
from manager.leadership.members import MembersKeeper, WedgeWatch
from manager.leadership.raft import RaftConsensus, why_no_leader
from manager.leadership.server import RaftMembershipServer
from manager.leadership.standing import MemberStanding
from manager.leadership.work import Term
from manager.roles.loop import RoleLoop
from manager.storage.member import Opening
from manager.store.store import Store
from manager.transport.server import RaftServer
from manager.transport.transport import GrpcTransport
from shoal.aio.supervise import Supervisor
from shoal.api.v1 import raft_pb2_grpc
from shoal.model.defaults import SNAPSHOT_INTERVAL
from shoal.model.objects import Cluster
from shoal.model.plan import CHANGES_MAX
from shoal.security.lock import LockKeys

_log = structlog.get_logger()


def open_raft(site: Site) -> RaftBackend:
    """Read the log. Blocking. Raises: CorruptLog and what else keeps a manager from starting."""
    return RaftBackend(site, _recover(site))


class RaftBackend:
    """Implements `Backend`."""

    changes_max = CHANGES_MAX

    def __init__(self, site: Site, recovery: Recovery) -> None:
        self._site = site
        self._ring = recovery.opened.keys
        self._must_join = recovery.must_join
        self._not_joined = NotJoined("the manager has not joined the others yet")
        self._stack = AsyncExitStack()
        self.store = Store(recovery.tables, site.clock, recovery.history)
        self.transport = GrpcTransport(recovery.me, site.dial)
        self.driver = RaftDriver(
            recovery,
            self.store,
            self.transport,
            snapshot_interval=_interval(recovery.tables.cluster),
        )
        self.store.attach(self.driver)
        self.consensus = RaftConsensus(self.driver, self.transport.addresses)
        self.changes = MembershipChanges(self.driver)

    async def __aenter__(self) -> Self:
        """Run the member."""
        await self._stack.enter_async_context(self.transport)
        await self._stack.enter_async_context(self.driver)
        self._stack.enter_context(self.consensus.followed())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it."""
        await self._stack.aclose()

    def why_no_leader(self) -> NoLeader:
        """`Backend.why_no_leader`."""
        return why_no_leader(self.driver)

    def why_not_ready(self) -> str:
        """`Backend.why_not_ready`."""
        if not self.driver.roster.members:
            return self._not_joined.reason
        if self.driver.raft.id not in self.driver.raft.membership.all_voters:
            return "the manager learns the log before it votes"
        return ""

    def is_stuck(self) -> bool:
        """`Backend.is_stuck`."""
        return not self.driver.roster.members and self._not_joined.stuck

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """`Backend.add_to_server`."""
        standing = MemberStanding(self.store, self.driver.leading, self.driver.is_reachable)
        raft_pb2_grpc.add_RaftServicer_to_server(RaftServer(self.transport, standing), server)

    def start(self, supervisor: Supervisor) -> None:
        """A manager without a log asks to be let in; the server, which is called back, is up."""
        if self._must_join:
            supervisor.start("join", self._join)

    def begin(self, term: Term, table: Any) -> None:
        """`Backend.begin`."""
        store, changes = term.store, self.changes
        keeper = MembersKeeper(self.driver, changes, store, self.transport.addresses)
        term.supervisor.start("members", keeper.run)
        refused: dict[str, str] = {}
        roles = RoleLoop(store, changes, self._site.clock, refused=refused)
        term.supervisor.start("roles", roles.run)
        term.supervisor.start("wedge watch", WedgeWatch(self.driver, changes).run)
        raft_pb2_grpc.add_RaftMembershipServicer_to_server(
            RaftMembershipServer(self.driver, changes, store, self.transport, refused), table
        )

    def use(self, cluster: Cluster) -> None:
        """Snapshots are taken as often as the settings say."""
        self.driver.snapshots.interval = _interval(cluster)

    async def lock(self, keys: LockKeys) -> None:
        """`Backend.lock`: the ring of data keys."""
        since = self.driver.raft.core.log.last_index + 1
        if await asyncio.to_thread(self._ring.lock_with, keys.current, since=since):
            _log.info("keys.locked" if keys.current else "keys.opened", index=since)

    @property
    def begin_hand_over(self) -> HandOver:
        """`Backend.begin_hand_over`."""
        return self.changes.begin_hand_over

    async def hand_over(self) -> None:
        """`Backend.hand_over`."""
        leads = self.consensus.leadership.value.here
        if leads and len(self.driver.raft.membership.voters) > 1:
            await self.changes.hand_over()

    async def wait_failed(self) -> None:
        """`Backend.wait_failed`."""
        await self.driver.wait_failed()

    async def _join(self) -> None:
        """Become a member, with the help of the managers this node knew when it joined."""
        config = self._site.config
        managers = [one for one in config.managers if one != config.advertise_address]

        def tell(news: NotJoined) -> None:
            reason = f"the others did not let this manager in yet: {news.reason}"
            self._not_joined = NotJoined(reason, news.stuck)

        members = await ask_to_join(self.transport.me, managers, self._site.dial, tell=tell)
        self.transport.introduce(members)


def _recover(site: Site) -> Recovery:
    """What the raft directory holds; a new cluster begins with the entry that init wrote."""
    paths, lock_keys = site.paths, site.live.lock_keys
    opening = Opening(site.cluster_id, unlock_key=lock_keys.current, former_keys=lock_keys.former)
    place = Place(paths.raft, opening, site.node_id, site.config.advertise_address)
    recovery = recover(place, site.first_entry_blocking())
    # A lock that changed while this manager was down, or a crash between the two files.
    recovery.opened.keys.lock_with(lock_keys.current, since=recovery.start.storage.last_index + 1)
    paths.bootstrap.unlink(missing_ok=True)
    return recovery


def _interval(cluster: Cluster | None) -> int:
    """Entries between two snapshots."""
    interval = None if cluster is None else cluster.spec.raft.snapshot_interval
    return interval or SNAPSHOT_INTERVAL
