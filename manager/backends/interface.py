"""What a manager asks of whatever keeps its state: the one seam between the two.

`app` composes a manager around a backend and knows nothing of Raft or etcd. A backend is entered
before anything is served and left after everything has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol, Self

import grpc
import msgspec

from manager.ca.live import LiveIdentity
from manager.ca.signing import Signer
from manager.leadership.interfaces import Consensus, NoLeader
from manager.leadership.work import Term
from manager.store.store import Store
from shoal.aio.supervise import Supervisor
from shoal.clock import SystemClock
from shoal.model.objects import Cluster, StoreEntry
from shoal.security.grpc_tls import secure_channel
from shoal.security.lock import BOOTSTRAP_PLACE, LockKeys, unprotect
from shoal.settings.node import NodeConfig
from shoal.settings.paths import NodePaths
from shoal.wire.objects import entry_from_bytes

HandOver = Callable[[str], str]
"""Begins to make a node's manager lead, "" = any other; the id of the one that is to lead."""


class Site(msgspec.Struct, frozen=True):
    """The node that a manager runs on."""

    paths: NodePaths
    config: NodeConfig
    clock: SystemClock
    live: LiveIdentity
    signer: Signer

    @property
    def node_id(self) -> str:
        """This node."""
        return self.live.identity.peer.node_id

    @property
    def cluster_id(self) -> str:
        """The cluster that this node is in."""
        return self.live.identity.peer.cluster_id

    def first_entry_blocking(self) -> StoreEntry | None:
        """The first entry of a new cluster, if init has just left it here.

        Raises: FailedPrecondition when it cannot be opened.
        """
        path = self.paths.bootstrap
        if not path.exists():
            return None
        content = path.read_bytes()
        return entry_from_bytes(
            unprotect(content, BOOTSTRAP_PLACE, self.live.lock_keys, name=str(path))
        )

    def dial(self, address: str) -> grpc.aio.Channel:
        """A channel to another manager, with the certificate of now."""
        return secure_channel(address, self.live.channel_credentials())


class Backend(Protocol):
    """Keeps the state of one manager."""

    store: Store

    async def __aenter__(self) -> Self:
        """Begin to follow the state."""
        ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop; the state stays."""
        ...

    @property
    def consensus(self) -> Consensus:
        """Who leads, and how its work is written."""
        ...

    @property
    def changes_max(self) -> int:
        """Changes that planners put into one transaction at most."""
        ...

    def why_no_leader(self) -> NoLeader:
        """What to tell people while nobody leads."""
        ...

    def why_not_ready(self) -> str:
        """Why this manager can take no part yet, "" when it can."""
        ...

    def is_stuck(self) -> bool:
        """Whether the reason of `why_not_ready` does not pass by itself."""
        ...

    def add_to_server(self, server: grpc.aio.Server) -> None:
        """Serve what managers say to each other, if they do."""
        ...

    def start(self, supervisor: Supervisor) -> None:
        """Begin what goes on for as long as the server is up."""
        ...

    def begin(self, term: Term, table: Any) -> None:
        """Begin what a leader does for the managers; its services go into the handler table."""
        ...

    def use(self, cluster: Cluster) -> None:
        """Follow the cluster's settings."""
        ...

    async def lock(self, keys: LockKeys) -> None:
        """Encrypt what is on this manager's disk with this lock key, or not at all.

        It is durable when this returns. Raises SwarmError; then all of it can still be read.
        """
        ...

    @property
    def begin_hand_over(self) -> HandOver | None:
        """Begins to make a node's manager lead; None where others choose the leader."""
        ...

    async def hand_over(self) -> None:
        """Let another manager lead, if this one does and there is another. Raises SwarmError."""
        ...

    async def wait_failed(self) -> None:
        """Wait until the state can be kept no more, and raise why. Ends the process."""
        ...
