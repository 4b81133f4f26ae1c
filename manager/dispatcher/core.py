"""Who is connected, and until when: the sessions of the agents, as a pure state machine.

A node has at most one session; a new one replaces it. Beats push its deadline forward; a session
whose deadline passes is expired, once. Time comes in as seconds on a monotonic clock, session ids
come in from outside.
"""

from __future__ import annotations

from shoal.errors import FailedPrecondition
from shoal.model.row import Row

MISSED_BEATS_MAX = 4
"""Beats a node may miss before it is called down."""
FIRST_CONTACT_S = 30.0
"""How long nodes may take to come back after this manager started."""


class Session(Row, frozen=True):
    """A node's registration. deadline_s: when it is called down unless it beats."""

    node_id: str
    session_id: str
    deadline_s: float


class Sessions:
    """All sessions of this manager."""

    def __init__(self, *, period_s: float) -> None:
        self.period_s = period_s
        self._by_node: dict[str, Session] = {}
        self._awaited: dict[str, float] = {}

    @property
    def grace_s(self) -> float:
        """Time without a beat after which a node is down, seconds."""
        return self.period_s * MISSED_BEATS_MAX

    def connected(self) -> frozenset[str]:
        """Nodes that have a session."""
        return frozenset(self._by_node)

    def is_connected(self, node_id: str) -> bool:
        """Whether the node has a session."""
        return node_id in self._by_node

    def known(self) -> frozenset[str]:
        """Nodes that have a session or are waited for."""
        return frozenset(self._by_node) | frozenset(self._awaited)

    def expect(
        self, node_ids: frozenset[str], now_s: float, *, wait_s: float | None = None
    ) -> None:
        """Nodes that should have a session: those without get time to come back, once.

        wait_s: how long; None: as long as nodes get after this manager started.
        """
        if wait_s is None:
            wait_s = max(FIRST_CONTACT_S, self.grace_s)
        for node_id in node_ids - self._by_node.keys():
            self._awaited.setdefault(node_id, now_s + wait_s)

    def postpone(self, by_s: float) -> None:
        """Nobody could be heard for that long: every deadline moves."""
        for node_id, session in self._by_node.items():
            self._by_node[node_id] = session.replaced(deadline_s=session.deadline_s + by_s)
        for node_id in self._awaited:
            self._awaited[node_id] += by_s

    def register(self, node_id: str, session_id: str, now_s: float) -> None:
        """Open a session, in place of the node's older one."""
        self._awaited.pop(node_id, None)
        self._by_node[node_id] = Session(node_id, session_id, now_s + self.grace_s)

    def beat(self, node_id: str, session_id: str, now_s: float) -> None:
        """Push the deadline forward. Raises FailedPrecondition for a session that is over."""
        self.check(node_id, session_id)
        self._by_node[node_id] = Session(node_id, session_id, now_s + self.grace_s)

    def check(self, node_id: str, session_id: str) -> None:
        """Raise FailedPrecondition unless this is the node's session."""
        session = self._by_node.get(node_id)
        if session is None or session.session_id != session_id:
            raise FailedPrecondition("the session is over: register again")

    def close(self, node_id: str, session_id: str) -> bool:
        """End a session; False when another one has replaced it already."""
        session = self._by_node.get(node_id)
        if session is None or session.session_id != session_id:
            return False
        del self._by_node[node_id]
        return True

    def forget(self, node_id: str) -> None:
        """The node was removed from the cluster."""
        self._by_node.pop(node_id, None)
        self._awaited.pop(node_id, None)

    def expire(self, now_s: float) -> list[str]:
        """Take out and name the nodes whose time is over."""
        late = [node_id for node_id, s in self._by_node.items() if s.deadline_s <= now_s]
        lost = [node_id for node_id, deadline_s in self._awaited.items() if deadline_s <= now_s]
        for node_id in (*late, *lost):
            self.forget(node_id)
        return sorted({*late, *lost})

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to say, unless beats come in."""
        deadlines = [s.deadline_s for s in self._by_node.values()]
        return min((*deadlines, *self._awaited.values()), default=None)
