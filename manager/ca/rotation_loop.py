"""Drives a root rotation on the manager that leads: a batch every three seconds, then the end."""

from __future__ import annotations

import asyncio

import structlog

from manager.ca.rotation import finish, next_batch, pending_nodes
from manager.store.store import Store, commit_with_retry
from manager.store.view import View
from shoal.errors import SwarmError
from shoal.model.plan import Change, update

PERIOD_S = 3.0

_log = structlog.get_logger()


class RotationLoop:
    """Give `run` to a supervisor."""

    def __init__(self, store: Store, *, period_s: float = PERIOD_S) -> None:
        self._store = store
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
            return [update(node) for node in batch]

        await commit_with_retry(self._store, build)
        if ended:
            _log.info("root.rotated")
        elif asked:
            _log.info("root.rotating", asked=asked)
