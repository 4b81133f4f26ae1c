"""Containers that a node's user puts on networks by hand: `docker run --network`, by the node.

Each is a task without a service, on that node from the beginning, which holds the addresses and
nothing else; allocator and overlays treat it as any other. The node says when it runs and when it
is over. Invariant: a container is on a network once, however often it is asked for. Refuses
networks that are not attachable, and what the allocator has no address for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from manager.allocator.networks.wishes import address_in, check_addresses
from manager.store.store import Store, Watcher, commit_with_retry
from manager.store.view import View
from shoal.clock import Clock
from shoal.errors import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from shoal.ids import new_id
from shoal.model.defaults import is_terminal
from shoal.model.enums import TaskState
from shoal.model.objects import Network, Task
from shoal.model.plan import Change, create, remove
from shoal.model.specs import NetworkAttachmentSpec, TaskSpec
from shoal.model.types import Annotations, NetworkAttachmentConfig, TaskStatus

ALLOCATION_TIMEOUT_S = 20.0
PER_NODE_MAX = 4_096
PAGE_SIZE = 200
NAME_LENGTH_MAX = 256
ALIASES_MAX = 64


class Attachments:
    """Makes and removes such tasks for the nodes that ask."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._making = asyncio.Lock()

    async def attach(
        self, node_id: str, wish: NetworkAttachmentConfig, *, container_id: str, name: str
    ) -> Task:
        """Put a container on a network. Result: its task, with addresses.

        Raises: NotFound, PermissionDenied (not attachable), InvalidArgument, ResourceExhausted with
        the allocator's reason, DeadlineExceeded; then nothing is left of it.
        """
        _check(wish, container_id=container_id, name=name)
        task_id = new_id()
        with self._store.watch() as watcher:
            async with self._making:  # two that ask for one container at once get one task
                commit = await commit_with_retry(
                    self._store,
                    lambda view: _attach(
                        view, node_id, wish, task_id=task_id, container_id=container_id,
                        name=name, now_ns=self._clock.now_ns(),
                    ),
                )  # fmt: skip
            made = commit.events
            found = _existing(self._store.view, node_id, wish, container_id)
            if found is None:
                raise NotFound(f"container {container_id} was detached meanwhile: attach it again")
            try:
                return await self._allocated(watcher, found.id)
            except BaseException:
                if made:
                    await asyncio.shield(self.detach(node_id, found.id))
                raise

    async def detach(self, node_id: str, attachment_id: str) -> None:
        """The container is off the network. Idempotent. Raises: PermissionDenied (not its own)."""

        def build(view: View) -> list[Change]:
            task = view.tasks.get(attachment_id)
            if task is None:
                return []
            if task.node_id != node_id or not isinstance(task.spec.runtime, NetworkAttachmentSpec):
                raise PermissionDenied(f"attachment {attachment_id} doesn't belong to this node")
            return [remove(task)]

        await commit_with_retry(self._store, build)

    def networks(
        self, after: str, *, sees: Callable[[Network], bool]
    ) -> tuple[list[Network], bool]:
        """The next networks by id that the caller may know, and whether there are more."""
        chosen = _after(self._store.view, after, sees)
        page = [network for _, network in zip(range(PAGE_SIZE), chosen, strict=False)]
        return page, len(page) == PAGE_SIZE and next(chosen, None) is not None

    async def _allocated(self, watcher: Watcher, task_id: str) -> Task:
        """Wait for the allocator. Raises: see `attach`."""
        try:
            async with asyncio.timeout(ALLOCATION_TIMEOUT_S):
                while True:
                    task = self._store.view.tasks.get(task_id)
                    if task is None:
                        raise NotFound(f"attachment {task_id} was removed")
                    if task.status.state >= TaskState.ASSIGNED:
                        return task
                    if task.status.error:
                        raise ResourceExhausted(task.status.error)
                    await watcher.next()
        except TimeoutError:
            raise DeadlineExceeded(
                f"no address within {ALLOCATION_TIMEOUT_S:g} s: see the managers' logs, and try"
                " again"
            ) from None


def _check(wish: NetworkAttachmentConfig, *, container_id: str, name: str) -> None:
    if not container_id:
        raise InvalidArgument("container id: must be given")
    if max(len(container_id), len(name)) > NAME_LENGTH_MAX:
        raise InvalidArgument(f"container: name and id may have {NAME_LENGTH_MAX} characters")
    check_addresses(wish.addresses)
    if len(wish.aliases) > ALIASES_MAX or max(map(len, wish.aliases), default=0) > NAME_LENGTH_MAX:
        raise InvalidArgument(
            f"aliases: at most {ALIASES_MAX}, of {NAME_LENGTH_MAX} characters each"
        )


def _attach(
    view: View,
    node_id: str,
    wish: NetworkAttachmentConfig,
    *,
    task_id: str,
    container_id: str,
    name: str,
    now_ns: int,
) -> list[Change]:
    network = view.networks.resolve(wish.target)
    if not network.spec.attachable:
        raise PermissionDenied(f"network {network.spec.annotations.name} not manually attachable")
    for address in wish.addresses:
        address_in(address, network)
    wish = wish.replaced(target=network.id)
    before = _existing(view, node_id, wish, container_id)
    if before is not None and (before.spec.networks, before.annotations.name) == ((wish,), name):
        return []
    if sum(map(_is_attachment, view.tasks_of_node(node_id).values())) >= PER_NODE_MAX:
        raise ResourceExhausted(
            f"the node's containers have {PER_NODE_MAX} places on networks already: remove some"
        )
    task = Task(
        id=task_id,
        node_id=node_id,
        annotations=Annotations(name=name),
        spec=TaskSpec(
            runtime=NetworkAttachmentSpec(container_id=container_id),
            networks=(wish,),
        ),
        status=TaskStatus(state=TaskState.NEW, timestamp_ns=now_ns, message="created"),
        desired_state=TaskState.RUNNING,
    )
    # It was started anew, with other names or another address, before its end was told.
    return [*([remove(before)] if before is not None else ()), create(task)]


def _existing(
    view: View, node_id: str, wish: NetworkAttachmentConfig, container_id: str
) -> Task | None:
    """The container's attachment to the network that is there already."""
    network = view.networks.resolve(wish.target)
    for task in view.tasks_of_node(node_id).values():
        runtime = task.spec.runtime
        if (
            isinstance(runtime, NetworkAttachmentSpec)
            and runtime.container_id == container_id
            and task.spec.networks[0].target == network.id
            and not is_terminal(task)
        ):
            return task
    return None


def _is_attachment(task: Task) -> bool:
    return isinstance(task.spec.runtime, NetworkAttachmentSpec)


def _after(view: View, after: str, sees: Callable[[Network], bool]) -> Iterator[Network]:
    rows = sorted((row for row in view.networks if row.id > after), key=lambda row: row.id)
    return (row for row in rows if sees(row))
