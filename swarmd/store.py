"""Where this node's manager keeps the cluster's state: in its own log, or in the etcd of `--store`.

The command line names it, node.json remembers it. Endpoints and files may change from start to
start; which cluster is meant may not, so whatever begins to use an etcd first looks which cluster
it holds. What an etcd does not need is refused, not ignored.
"""

from __future__ import annotations

import structlog

from manager.etcd.presence import require_cluster, require_room
from manager.etcd.settings import EtcdSettings, parse_url
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.security.identity import NodeIdentity
from shoal.security.roles import Role
from swarmd.core import InitWish
from swarmd.node import LocalNode

_log = structlog.get_logger()


class ManagerStore:
    """What `--store` says; an empty URL: a log of the manager's own."""

    def __init__(self, url: str) -> None:
        """Raises InvalidArgument naming the part of the URL that is wrong."""
        self.url = url
        self._settings: EtcdSettings | None = _parse(url) if url else None

    def settle_blocking(self, node: LocalNode) -> None:
        """Let the node, if it is in a cluster, use this store from now on.

        Raises: FailedPrecondition for a manager that has a log of its own.
        """
        config = node.membership.config
        if not self.url or config is None or config.store == self.url:
            return
        if not config.store and node.membership.is_manager:
            raise FailedPrecondition(
                "--store: this node's manager keeps the cluster's state in a log of its own: leave"
                " out --store, or `swarmctl leave` and `swarmctl init` a new cluster"
            )
        node.use_store_blocking(self.url)
        _log.info("node.store_changed", store=self.url)

    async def check_init(self, wish: InitWish) -> None:
        """Refuse a new cluster that could not begin.

        Raises: InvalidArgument; FailedPrecondition when etcd holds a cluster there already;
        Unavailable, DeadlineExceeded when etcd does not answer, and what it refuses with.
        """
        if self._settings is None:
            return
        if wish.snapshot_interval is not None:
            raise InvalidArgument(
                "snapshot interval: the managers' state is in etcd (--store), which has its own"
                " (etcd's --snapshot-count): leave it out"
            )
        await require_room(self._settings)

    async def check_join(self, identity: NodeIdentity) -> None:
        """Refuse to manage a cluster whose state is not where `--store` says. Raises: as above."""
        if self._settings is not None and identity.peer.role is Role.MANAGER:
            await require_cluster(self._settings, identity.peer.cluster_id)

    def require_log(self, what: str) -> None:
        """Raise FailedPrecondition when there is no log of our own, which `what` is about."""
        if self.url:
            raise FailedPrecondition(
                f"{what}: this node's managers keep the state in etcd (--store), not in a log of"
                " their own: use `etcdctl snapshot`, or start swarmd without --store"
            )


def _parse(url: str) -> EtcdSettings:
    """The URL is kept for later starts, which may be made in another directory."""
    settings = parse_url(url)
    for name in ("cacert", "cert", "key", "password_file"):
        path = getattr(settings, name)
        if path is not None and not path.is_absolute():
            raise InvalidArgument(f"store: {name} {path}: must be an absolute path")
    return settings
