"""What swarmd knows of the node's processes at this moment: who answers, who is ready."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import msgspec

from shoal.clock import NS_PER_S
from shoal.errors import SwarmError
from swarmd import telemetry_client
from swarmd.children import Child
from swarmd.host import Usage, usage
from swarmd.node import LocalNode
from swarmd.page import NodeSample, ProcessSample, render
from swarmd.settings import VERSION
from swarmd.upstream import Upstream

SWARMD = "swarmd"


class Process(msgspec.Struct, frozen=True):
    """A child and the way to it."""

    child: Child
    upstream: Upstream


class NodeStatus:
    """Answers for the node over its processes; holds nothing of its own."""

    def __init__(self, node: LocalNode, processes: Sequence[Process]) -> None:
        self._node = node
        self._processes = processes

    def pids(self) -> dict[str, int]:
        """The running processes: name -> pid."""
        found = {SWARMD: os.getpid()}
        for process in self._wanted():
            if process.child.pid is not None:
                found[process.child.name] = process.child.pid
        return found

    async def reasons(self) -> dict[str, str]:
        """Why the node is not ready, by process; empty when it is."""
        wanted = self._wanted()
        answers = await asyncio.gather(
            *(telemetry_client.readiness(process.upstream) for process in wanted)
        )
        reasons = {
            process.child.name: answer.reason or "not ready"
            for process, answer in zip(wanted, answers, strict=True)
            if not answer.ready
        }
        if self._node.error:
            reasons[SWARMD] = self._node.error
        return reasons

    async def metrics_page(self) -> bytes:
        """The metrics of the node in Prometheus text format."""
        wanted = self._wanted()
        pages = await asyncio.gather(*(_page(process.upstream) for process in wanted))
        used = await asyncio.to_thread(_usages, self.pids())
        samples = [ProcessSample(SWARMD, up=True, restarts=0, usage=used.get(SWARMD))]
        for process, page in zip(wanted, pages, strict=True):
            name, restarts = process.child.name, process.child.restarts
            samples.append(
                ProcessSample(name, up=page is not None, restarts=restarts, usage=used.get(name))
            )
        # Not this process's own registry: code it shares with the manager has its families there.
        return render(self._sample(samples), [page for page in pages if page])

    def _sample(self, processes: Sequence[ProcessSample]) -> NodeSample:
        membership = self._node.membership
        identity = membership.identity
        peer = identity.peer if identity else None
        return NodeSample(
            version=VERSION,
            cluster_id=peer.cluster_id if peer else "",
            node_id=peer.node_id if peer else "",
            is_manager=membership.is_manager,
            is_locked=membership.locked,
            processes=tuple(processes),
            certificate_end_s=identity.not_after_ns // NS_PER_S if identity else None,
        )

    def _wanted(self) -> list[Process]:
        return [process for process in self._processes if process.child.wanted]


async def _page(upstream: Upstream) -> bytes | None:
    try:
        return await telemetry_client.metrics(upstream)
    except SwarmError:
        return None


def _usages(pids: dict[str, int]) -> dict[str, Usage]:
    found = {name: usage(pid) for name, pid in pids.items()}
    return {name: value for name, value in found.items() if value is not None}
