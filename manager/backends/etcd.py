"""The state in an etcd that somebody else runs.

The manager serves from its start on, also while etcd cannot be reached: callers are told why. A
prefix that holds another cluster, or none, is never written to.
"""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import grpc
import structlog

from manager.backends.interface import Site
from manager.etcd.backend import EtcdConsensus
from manager.etcd.beginning import begin_cluster
from manager.etcd.presence import require_cluster
from manager.etcd.settings import EtcdSettings, parse_url
from manager.leadership.etcd import EtcdLeadership
from manager.leadership.etcd_members import EtcdMembers, NoRaftMembers
from manager.leadership.interfaces import NoLeader
from manager.leadership.work import Term
from manager.roles.loop import RoleLoop
from manager.store.store import Store
from manager.store.tables import Tables
from shoal.aio.backoff import Backoff
from shoal.aio.cancel import raise_if_cancelled
from shoal.aio.supervise import Supervisor
from shoal.api.v1 import raft_pb2_grpc
from shoal.errors import SwarmError
from shoal.model.objects import Cluster
from shoal.security.lock import LockKeys

RETRY_PAUSE_MAX_S = 2.0

_log = structlog.get_logger()


def open_etcd(site: Site) -> EtcdBackend:
    """Read the URL and the files it names; etcd need not answer yet. Raises InvalidArgument."""
    return EtcdBackend(site, parse_url(site.config.store))


class EtcdBackend:
    """Implements `Backend`."""

    begin_hand_over = None  # etcd's lease decides who leads

    def __init__(self, site: Site, settings: EtcdSettings) -> None:
        self._site = site
        self._settings = settings
        self._problem = "it was not asked yet"
        self._task: asyncio.Task[None] | None = None
        self.store = Store(Tables(), site.clock)
        self.etcd = EtcdConsensus(
            settings, self.store, address=site.config.advertise_address, node_id=site.node_id
        )
        self.store.attach(self.etcd)
        self.consensus = EtcdLeadership(self.etcd)

    async def __aenter__(self) -> Self:
        """Begin to look for etcd."""
        self._task = asyncio.create_task(self._run(), name="etcd")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give up the leadership and close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def changes_max(self) -> int:
        """`Backend.changes_max`."""
        return self.etcd.changes_max

    def why_no_leader(self) -> NoLeader:
        """`Backend.why_no_leader`."""
        problem = self._problem or self.etcd.problem
        if problem:
            return NoLeader(
                "The cluster's state is in etcd, which does not serve this manager:"
                f" {problem}. Containers run on; nothing can be changed until etcd answers.",
                is_passing=False,
            )
        return NoLeader(
            "The cluster does not have a leader: one is chosen when the lease of the last one has"
            f" ended, within {self._settings.lease_ttl_s} s. Try again in a moment.",
            is_passing=True,
        )

    def why_not_ready(self) -> str:
        """`Backend.why_not_ready`."""
        return self._problem

    def is_stuck(self) -> bool:
        """`Backend.is_stuck`: etcd may serve again at any time."""
        return False

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Managers say nothing to each other: they meet in etcd."""

    def start(self, supervisor: Supervisor) -> None:
        """`_run` does it all."""

    def begin(self, term: Term, table: Any) -> None:
        """`Backend.begin`."""
        members = EtcdMembers(self.etcd, term.store, self._site.node_id)
        roles = RoleLoop(term.store, members, self._site.clock, changes_max=self.changes_max)
        term.supervisor.start("members", members.run)
        term.supervisor.start("roles", roles.run)
        raft_pb2_grpc.add_RaftMembershipServicer_to_server(NoRaftMembers(), table)

    def use(self, cluster: Cluster) -> None:
        """Its settings for logs and snapshots have no meaning here, and are refused."""

    async def lock(self, keys: LockKeys) -> None:
        """Nothing of the state is on this manager's disk."""

    async def hand_over(self) -> None:
        """`Backend.hand_over`."""
        await self.etcd.resign()

    async def wait_failed(self) -> None:
        """`Backend.wait_failed`."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        """Find the cluster's state, and follow it for ever. Raises what makes that impossible."""
        await self._find()
        async with self.etcd:
            self._problem = ""
            with self.consensus.followed():
                await self.etcd.wait_failed()

    async def _find(self) -> None:
        """Wait until etcd answers and holds this cluster, and no other."""
        backoff = Backoff(max_s=RETRY_PAUSE_MAX_S)
        while True:
            try:
                await self._begin()
                await require_cluster(self._settings, self._site.cluster_id)
            except SwarmError as error:
                raise_if_cancelled()
                self._problem = error.message
                _log.warning("etcd.not_ready", reason=error.message)
                await asyncio.sleep(backoff.next_s())
            else:
                return

    async def _begin(self) -> None:
        """Write the entry that init left, if it did."""
        entry = await asyncio.to_thread(self._site.first_entry_blocking)
        if entry is not None:
            await begin_cluster(self._settings, entry, self._site.clock)
            await asyncio.to_thread(self._site.paths.bootstrap.unlink)
