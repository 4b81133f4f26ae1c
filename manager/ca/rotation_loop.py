"""Drives a root rotation on the manager that leads: a batch every three seconds, then the end."""

from __future__ import annotations

import asyncio

import structlog

from manager.ca.rotation import external_for, finish, next_batch, pending_nodes
from manager.ca.signing import STORED_KEYS, Signer
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.errors import SwarmError
from shoal.model.objects import Cluster
from shoal.model.plan import Change, update

PERIOD_S = 3.0

_log = structlog.get_logger()


class RotationLoop:
    """Give `run` to a supervisor."""

    def __init__(
        self, store: Store, signer: Signer = STORED_KEYS, *, period_s: float = PERIOD_S
    ) -> None:
        """signer: says what keeps the new root from signing; users see it in the row."""
        self._store = store
        self._signer = signer
        self._period_s = period_s

    async def run(self) -> None:
        """Take every rotation to its end, until cancelled."""
        while True:
            try:
                await self._turn()
            except SwarmError as error:
                _log.warning("root.rotation_waits", reason=error.message)
            await asyncio.sleep(self._period_s)

    async def _turn(self) -> None:
        asked, ended = 0, False

        def build(view: View) -> list[Change]:
            nonlocal asked, ended
            asked, ended = 0, False
            cluster = view.cluster
            if cluster is None or cluster.root_ca.rotation is None:
                return []
            pending = pending_nodes(cluster.root_ca.rotation, view.nodes)
            if not pending:
                ended = True
                return [update(finish(cluster))]
            batch = next_batch(pending)
            asked = len(batch)
            return [*told(cluster, self._signer.problem), *map(update, batch)]

        await commit_with_retry(self._store, build)
        if ended:
            _log.info("root.rotated")
        elif asked:
            _log.info("root.rotating", asked=asked)


def told(cluster: Cluster, problem: str) -> list[Change]:
    """The change that says in the row what holds the rotation up."""
    root_ca = cluster.root_ca
    if root_ca.rotation is None:
        return []
    message = problem if external_for(cluster, root_ca.rotation.ca_certificate) else ""
    if message == root_ca.rotation.message:
        return []
    rotation = root_ca.rotation.replaced(message=message)
    return [update(cluster.replaced(root_ca=root_ca.replaced(rotation=rotation)))]
