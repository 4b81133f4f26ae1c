"""Locks this node's manager as the cluster asks for, and takes the lock off again.

Level-triggered: what the manager says first, after every start, is the state of now. In this
order, so that a crash at any point leaves a node that one unlock key opens: the new lock key is in
`lock.json`; the identity is encrypted with it; the processes know it, and the manager has encrypted
its data keys; former lock keys go. A private key that lay on the disk in the clear is replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import structlog

from manager.ca.autolock import WantedLock
from shoal.errors import FailedPrecondition, SwarmError
from shoal.security.lock import NodeLock
from swarmd import manager_client, worker_client
from swarmd.node import LocalNode
from swarmd.renewal import Routes

RETRY_S = 1.0
LOOK_PERIOD_S = 0.2
"""How often a node that is no manager looks whether it has become one."""

_log = structlog.get_logger()


class Autolock:
    """Give `run` to a supervisor. renew: asks for another private key and certificate."""

    def __init__(self, node: LocalNode, routes: Routes, *, renew: Callable[[], None]) -> None:
        self._node = node
        self._routes = routes
        self._renew = renew
        self._told: NodeLock | None = None

    async def run(self) -> None:
        """Follow the cluster while this node is a manager, until cancelled."""
        while True:
            if not self._node.membership.is_manager:
                await asyncio.sleep(LOOK_PERIOD_S)
                continue
            try:
                async with aclosing(manager_client.watch_lock(self._routes.manager)) as news:
                    async for wanted in news:
                        await self._follow(wanted)
            except (SwarmError, OSError) as error:
                _log.debug("lock.not_followed", reason=str(error))
            await asyncio.sleep(RETRY_S)

    async def _follow(self, wanted: WantedLock) -> None:
        """Make it so. Raises: SwarmError, OSError; call it again then."""
        before = self._node.lock.value
        try:
            await _whole(lambda: self._node.relock_blocking(wanted))
            lock = self._node.lock.value
            if lock is self._told:
                return
            await self._tell(lock)
            await _whole(lambda: self._node.settle_blocking(lock))
        except (SwarmError, OSError) as error:
            _log.warning("lock.not_changed", reason=str(error))
            raise
        self._told = self._node.lock.value
        if lock is not before:
            _log.info("node.lock_changed", locked=lock.is_locked, since=lock.since)
            if lock.is_locked and not before.is_locked:
                self._renew()

    async def _tell(self, lock: NodeLock) -> None:
        keys = lock.lock_keys
        await manager_client.reload_identity(self._routes.manager, keys)
        try:
            await worker_client.reload_identity(self._routes.worker, keys)
        except FailedPrecondition:  # it could not read the identity before
            await worker_client.reload(self._routes.worker, keys)


async def _whole(work: Callable[[], None]) -> None:
    """Run blocking `work` in a thread; a cancellation waits for its end."""
    task = asyncio.create_task(asyncio.to_thread(work))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
