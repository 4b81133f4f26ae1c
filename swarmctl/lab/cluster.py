"""Makes one cluster of a lab's running daemons, over each node's own socket.

The first manager is initialised, the others join it at the same time. Invariant: success means
that every node is READY in the store. Errors carry `node` in their context: whose log to read.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal.errors import DeadlineExceeded, SwarmError, Unavailable
from shoal.model.enums import NodeState
from shoal.model.objects import Node
from swarmctl.client import Client
from swarmctl.lab.nodes import daemon, has_socket, paths_of
from swarmctl.lab.plan import ETCD_PORT, LabPlan, NodePlan
from swarmctl.target import Target
from swarmctl.types import InitOptions, JoinOptions, NodeInfo

PORT = 2377
STANDING_TIMEOUT_S = 1.0
CONNECT_TIMEOUT_S = 1.0
_POLL_S = 0.05
_NO_ERROR = "no answer yet"

Report = Callable[[str], None]


async def form(lab: LabPlan, *, timeout_s: float, report: Report) -> None:
    """Turn daemons that were just started into one cluster.

    Raises: SwarmError, `context["node"]` naming the node that failed; DeadlineExceeded.
    """
    deadline_s = time.monotonic() + timeout_s
    await _each(wait_listening(lab, node, deadline_s=deadline_s) for node in lab.stores)
    await _each(wait_serving(lab, node, deadline_s=deadline_s) for node in lab.nodes)
    first, *others = lab.nodes
    report(f"init {first.name} ({first.address})")
    async with _client(lab, first) as client:
        with _blame(first):
            result = await client.init(InitOptions(advertise_address=first.address))
    tokens = {"manager": result.manager_token, "worker": result.worker_token}
    remote = result.advertise_address or first.address
    if others:
        report(f"join {', '.join(node.name for node in others)}")
    await _each(_join(lab, node, token=tokens[node.role], remote=remote) for node in others)
    await wait_ready(lab, deadline_s=deadline_s)


async def _join(lab: LabPlan, node: NodePlan, *, token: str, remote: str) -> None:
    address = remote if ":" in remote else f"{remote}:{PORT}"
    async with _client(lab, node) as client:
        with _blame(node):
            await client.join(
                JoinOptions(
                    remote_addresses=(address,), token=token, advertise_address=node.address
                )
            )


async def wait_serving(lab: LabPlan, node: NodePlan, *, deadline_s: float) -> NodeInfo:
    """Wait until the node's daemon answers on its socket; deadline on the monotonic clock.

    Raises: Unavailable when the daemon ends, DeadlineExceeded; both with `node` in the context.
    """
    problem = _NO_ERROR
    while True:
        if daemon(lab, node) is None:
            raise Unavailable(f"node {node.name}: swarmd ended while starting", node=node.name)
        if has_socket(lab, node):
            try:
                async with _client(lab, node) as client:
                    return await client.info()
            except Unavailable as error:
                problem = error.message
        if time.monotonic() > deadline_s:
            raise DeadlineExceeded(
                f"node {node.name}: swarmd does not serve: {problem}", node=node.name
            )
        await asyncio.sleep(_POLL_S)


async def wait_listening(lab: LabPlan, node: NodePlan, *, deadline_s: float) -> None:
    """Wait until a store takes connections; deadline on the monotonic clock. Raises: as above."""
    while True:
        if daemon(lab, node) is None:
            raise Unavailable(f"node {node.name}: etcd ended while starting", node=node.name)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                _, writer = await asyncio.open_connection(node.address, ETCD_PORT)
        except (OSError, TimeoutError) as error:
            if time.monotonic() > deadline_s:
                raise DeadlineExceeded(
                    f"node {node.name}: etcd does not listen: {error}", node=node.name
                ) from error
            await asyncio.sleep(_POLL_S)
        else:
            writer.close()
            return


async def wait_ready(
    lab: LabPlan, *, deadline_s: float, names: frozenset[str] | None = None
) -> None:
    """Wait until the cluster's store says READY for these nodes, or all of them.

    Raises: DeadlineExceeded with what each missing node was last seen as.
    """
    wanted = names or frozenset(node.name for node in lab.nodes)
    missing = dict.fromkeys(sorted(wanted), "unknown")
    problem = ""
    while True:
        try:
            missing = await _not_ready(lab, wanted)
            problem = ""
        except SwarmError as error:
            if not error.retryable:
                raise
            problem = f" ({error.message})"
        if not missing:
            return
        if time.monotonic() > deadline_s:
            states = ", ".join(f"{name} is {state}" for name, state in missing.items())
            raise DeadlineExceeded(f"not all nodes are ready: {states}{problem}", node=min(missing))
        await asyncio.sleep(_POLL_S)


async def standing(lab: LabPlan) -> dict[str, str]:
    """Each node's role now: `worker`, `manager` or `leader`; empty when no manager answers."""
    running = [node for node in lab.nodes if daemon(lab, node) is not None]
    for node in sorted(running, key=lambda one: one.role != "manager"):
        async with _client(lab, node) as client:
            try:
                async with asyncio.timeout(STANDING_TIMEOUT_S):
                    found = await client.nodes()
            except (SwarmError, TimeoutError):
                continue
        # A node that joined anew leaves its old object behind, which does not hide the new one.
        found.sort(key=lambda one: one.status.state is NodeState.READY)
        return {one.description.hostname: _standing(one) for one in found}
    return {}


async def locked(lab: LabPlan) -> frozenset[str]:
    """Names of the nodes that wait for the unlock key."""

    async def state(node: NodePlan) -> str:
        async with _client(lab, node) as client:
            try:
                async with asyncio.timeout(STANDING_TIMEOUT_S):
                    return (await client.info()).state
            except (SwarmError, TimeoutError):
                return ""

    running = [node for node in lab.nodes if daemon(lab, node) is not None]
    states = await asyncio.gather(*map(state, running))
    return frozenset(
        node.name for node, found in zip(running, states, strict=True) if found == "locked"
    )


def _standing(node: Node) -> str:
    if node.manager_status is not None and node.manager_status.leader:
        return "leader"
    return node.role.name.lower()


async def _not_ready(lab: LabPlan, wanted: frozenset[str]) -> dict[str, str]:
    found = await _nodes(lab)
    states = dict.fromkeys(sorted(wanted), "not in the cluster")
    for node in found:
        name = node.description.hostname
        # A node that joined anew leaves its old object behind: the best one counts.
        if name in states and states[name] != NodeState.READY.name.lower():
            states[name] = node.status.state.name.lower()
    return {name: state for name, state in states.items() if state != NodeState.READY.name.lower()}


async def _nodes(lab: LabPlan) -> list[Node]:
    """The cluster's nodes, from the first manager that answers. Raises: Unavailable."""
    failure: SwarmError = Unavailable("no manager of the lab is running")
    for node in lab.nodes:
        if node.role == "manager" and daemon(lab, node):
            async with _client(lab, node) as client:
                try:
                    return await client.nodes()
                except SwarmError as error:
                    failure = error
    raise failure


def _client(lab: LabPlan, node: NodePlan) -> Client:
    socket = paths_of(lab, node).socket
    return Client(Target(host=f"unix://{socket}", socket=Path(socket)))


@contextmanager
def _blame(node: NodePlan) -> Iterator[None]:
    """Name the node in every error of the family that leaves the block."""
    try:
        yield
    except SwarmError as error:
        error.context["node"] = node.name
        error.message = f"node {node.name}: {error.message}"
        raise


async def _each(work: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Run all at once; the first error ends the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except BaseExceptionGroup as failures:
        raise first_of(failures) from failures


def first_of(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group that is not itself a group."""
    first: BaseException = failures
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
