"""Starts and stops the manager process as the node's certificate says. Containers never notice.

Level-triggered: the role of the identity on disk is the wish. A node that is no manager any more
gives up its log, whose raft id was removed from the cluster and never returns.
"""

from __future__ import annotations

import asyncio
import shutil

import structlog

from swarmd.children import Child
from swarmd.node import LocalNode

_log = structlog.get_logger()


class RoleSwitch:
    """Ask it to `follow` after every change of the identity."""

    def __init__(self, node: LocalNode, manager: Child) -> None:
        self._node = node
        self._manager = manager

    async def follow(self) -> bool:
        """Make the manager process run or not. Result: whether that changed anything.

        A process that is started reads the identity itself.
        """
        membership = self._node.membership
        if membership.identity is None or self._node.changing:
            return False  # the one who changes the membership does it
        if membership.is_manager == self._manager.wanted:
            return False
        if membership.is_manager:
            _log.info("node.promoted")
            self._manager.start()
            return True
        _log.info("node.demoted")
        await self._manager.stop()
        await asyncio.to_thread(self.remove_log_blocking)
        return True

    def remove_log_blocking(self) -> None:
        """Remove the log of a node that is no manager."""
        membership, paths = self._node.membership, self._node.paths
        if membership.identity is None or membership.is_manager:
            return
        for path in (paths.raft, paths.raft_removed):
            if path.exists():
                shutil.rmtree(path)
