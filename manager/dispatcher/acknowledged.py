"""Which version of the endpoints each node has in force. Pure.

A node counts from the moment it is known until it is down or removed: its data plane balances on
while its agent is away, by what it acknowledged last. Under a manager that has just begun to lead
that is nothing, since versions are counted anew. A version that is the same for a node as the one
before is in force there as soon as that one is: nobody tells the node of it.

Invariants: a node's version never falls and never is newer than the newest; only nodes with a
stream acknowledge.
"""

from __future__ import annotations


class Acknowledged:
    """Versions by node, of all nodes that hold back a stop."""

    def __init__(self) -> None:
        self.versions: dict[str, int] = {}
        self._concerned: dict[str, int] = {}
        """By node with a stream: the newest version that is another one for it."""
        self._nodes_at: dict[int, int] = {}
        """How many nodes have each version in force: far fewer versions than nodes."""
        self._least: int | None = None

    def by_all(self) -> int | None:
        """Version that every node has in force; None without any node."""
        return self._least

    def expect(self, node_id: str) -> None:
        """The node counts, whatever it has in force."""
        if node_id not in self.versions:
            self._set(node_id, 0)

    def begin(self, node_id: str, newest: int) -> None:
        """A stream of the node opens: it has to acknowledge the newest version, all of it."""
        self.expect(node_id)
        self._concerned[node_id] = newest

    def end(self, node_id: str) -> None:
        """The node has no stream; what it has in force stays. Idempotent."""
        self._concerned.pop(node_id, None)

    def forget(self, node_id: str) -> bool:
        """The node is down, or removed: it holds nobody back. Result: whether it did."""
        self.end(node_id)
        version = self.versions.pop(node_id, None)
        if version is not None:
            self._leave(version)
        return version is not None

    def change(self, node_id: str, newest: int, *, concerned: bool) -> None:
        """There is a newer version. concerned: it is another one for this node, with a stream."""
        if concerned:
            self._concerned[node_id] = newest
        elif self.versions[node_id] >= self._concerned[node_id]:
            self._set(node_id, newest)

    def acknowledge(self, node_id: str, version: int, newest: int) -> bool:
        """The node has this version in force. Result: whether `by_all` changed."""
        concerned = self._concerned.get(node_id)
        if concerned is None:
            return False
        before = self.by_all()
        in_force = newest if version >= concerned else version
        self._set(node_id, max(self.versions[node_id], in_force))
        return self.by_all() != before

    def _set(self, node_id: str, version: int) -> None:
        old = self.versions.get(node_id)
        if old == version:
            return
        self.versions[node_id] = version
        self._nodes_at[version] = self._nodes_at.get(version, 0) + 1
        if self._least is None or version < self._least:
            self._least = version
        if old is not None:
            self._leave(old)

    def _leave(self, version: int) -> None:
        """A node has this version no longer."""
        self._nodes_at[version] -= 1
        if not self._nodes_at[version]:
            del self._nodes_at[version]
            if version == self._least:
                self._least = min(self._nodes_at, default=None)
