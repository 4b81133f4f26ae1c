"""Choose among the nodes that fit: spread over labels first, then over nodes.

A tree with one level per spread preference; its leaves are heaps of nodes. Both keep the emptiest
on top, so a task costs O(log nodes), and a group of n tasks on m nodes O((n + m) log m). Among
nodes: those with many recent failures of this service last, then those that meet most wishes to
prefer or avoid nodes, then fewest tasks of the service, then fewest tasks in all, then those that
have the image, then the node id.
With packing, in place of the two numbers: the fullest, then most tasks in all. A node without a
label is in a branch of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence

from manager.scheduler.constraints import label_of
from manager.scheduler.usage import Usage

FAILURES_MAX = 5
"""As many failures of one service version within FAILURES_WINDOW_NS put a node last."""
FAILURES_WINDOW_NS = 300_000_000_000

NodeKey = tuple[bool, int, int, int, bool, str]


class EmptiestFirst:
    """All ready nodes of a round by number of tasks: the order for services that are new to them.

    Nodes that neither have a task of the service nor failed it come before all others, in this
    very order; so a small group need not look at every node of a large cluster.
    """

    def __init__(self, usages: Iterable[Usage]) -> None:
        self._usage = {usage.node.id: usage for usage in usages}
        self._heap = [(usage.tasks, node_id) for node_id, usage in self._usage.items()]
        heapq.heapify(self._heap)

    def each(self, favoured: Collection[str] = ()) -> Generator[Usage, None, None]:
        """Every node once, the emptiest first. Close the iterator before asking for another.

        favoured: ids of nodes that come first among those with equally many tasks.
        """
        seen: list[str] = []
        ahead = sorted(((self._usage[one].tasks, one) for one in favoured), reverse=True)
        had: set[str] = set()
        try:
            while self._heap:
                tasks, node_id = heapq.heappop(self._heap)
                usage = self._usage[node_id]
                if tasks != usage.tasks:  # it got tasks by another way since it was put here
                    heapq.heappush(self._heap, (usage.tasks, node_id))
                    continue
                seen.append(node_id)
                while ahead and ahead[-1][0] <= tasks:
                    _, first = ahead.pop()
                    had.add(first)
                    yield self._usage[first]
                if node_id not in had:
                    yield usage
        finally:
            for node_id in seen:
                heapq.heappush(self._heap, (self._usage[node_id].tasks, node_id))


class Ranking:
    """Candidates for one group of equal tasks. `copies` is written by `take`."""

    def __init__(
        self,
        candidates: Sequence[Usage],
        copies: dict[str, int],
        failures: Mapping[str, int],
        preferences: Sequence[str],
        *,
        packs: bool = False,
        demerits: Mapping[str, int] | None = None,
        holders: Collection[str] = (),
    ) -> None:
        """packs: the fullest nodes are taken first, not those with fewest tasks.

        demerits: wishes that a node does not meet, by its id. holders: ids of nodes that have the
        image, which decides between nodes that are as good in everything else.
        """
        self._holders = holders
        self._packs = packs
        self._demerits = demerits or {}
        self._copies = copies
        self._failures = failures
        self._usage = {usage.node.id: usage for usage in candidates}
        self._root = self._branch(candidates, tuple(preferences))

    def take(self, fits: Callable[[Usage], bool], place: Callable[[Usage], None]) -> bool:
        """Place one task on the best node that still fits; False when none does.

        A node that does not fit any more is dropped: within a group nothing is ever freed.
        """
        while not self._root.is_empty:
            path = [self._root]
            while path[-1].branches:
                path.append(path[-1].branches[0][2])
            leaf = path[-1]
            usage = self._usage[leaf.nodes[0][-1]]
            if fits(usage):
                place(usage)
                self._copies[usage.node.id] = self._copies.get(usage.node.id, 0) + 1
                heapq.heapreplace(leaf.nodes, self._key(usage))
                _settle(path, added=1)
                return True
            heapq.heappop(leaf.nodes)
            _settle(path, added=0)
        return False

    def _key(self, usage: Usage) -> NodeKey:
        node_id = usage.node.id
        failing = self._failures.get(node_id, 0) >= FAILURES_MAX
        demerits = self._demerits.get(node_id, 0)
        lacks_image = node_id not in self._holders
        if self._packs:
            return failing, demerits, -usage.fullness, -usage.tasks, lacks_image, node_id
        return (
            failing,
            demerits,
            self._copies.get(node_id, 0),
            usage.tasks,
            lacks_image,
            node_id,
        )

    def _branch(self, candidates: Sequence[Usage], preferences: tuple[str, ...]) -> _Branch:
        branch = _Branch()
        branch.copies = sum(self._copies.get(usage.node.id, 0) for usage in candidates)
        if not preferences:
            branch.nodes = [self._key(usage) for usage in candidates]
            heapq.heapify(branch.nodes)
            return branch
        members: dict[str, list[Usage]] = {}
        for usage in candidates:
            members.setdefault(label_of(usage.node, preferences[0]), []).append(usage)
        for value, inside in members.items():
            child = self._branch(inside, preferences[1:])
            branch.branches.append((child.copies, value, child))
        heapq.heapify(branch.branches)
        return branch


class _Branch:
    """A value of a label, or with no preference left the nodes themselves."""

    __slots__ = ("branches", "copies", "nodes")

    def __init__(self) -> None:
        self.copies = 0
        self.branches: list[tuple[int, str, _Branch]] = []
        self.nodes: list[NodeKey] = []

    @property
    def is_empty(self) -> bool:
        return not self.branches and not self.nodes


def _settle(path: list[_Branch], *, added: int) -> None:
    """Restore the order of the heaps above a leaf whose top changed."""
    for branch in path:
        branch.copies += added
    for parent, child in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
        _, value, top = parent.branches[0]
        if top is not child:
            continue
        if child.is_empty:
            heapq.heappop(parent.branches)
        else:
            heapq.heapreplace(parent.branches, (child.copies, value, child))
