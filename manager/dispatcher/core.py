"""Who is connected, and who has fallen silent: the sessions of the agents, as a pure state machine.

A node has at most one session; a new one replaces it. Each node's detector judges its beats, and
outlives its sessions; a session whose node is dead is expired, once. Time comes in as seconds on a
monotonic clock, session ids come in from outside.
"""

from __future__ import annotations

from collections import deque

from manager.dispatcher.detector import MISSED_BEATS_MIN, Bounds, Detector, Verdict
from shoal.errors import FailedPrecondition, Unavailable
from shoal.model.row import Row

GOODBYE_WAIT_S = 4.0
"""How long a node that said goodbye may take to come back."""
FIRST_CONTACT_S = 30.0
"""How long nodes may take to come back after this manager started."""
DOUBTED_S = 2.5
"""How long of that is left to a node whose manager is not heard of either."""
REGISTRATIONS_MAX = 3
REGISTRATIONS_PERIOD_S = 8.0
"""A node registers at most that often in that time: each registration is a write. As long as an
agent's longest pause."""


class Session(Row, frozen=True):
    """A node's registration."""

    node_id: str
    session_id: str


class Sessions:
    """All sessions of this manager."""

    def __init__(self, *, period_s: float, bounds: Bounds | None = None) -> None:
        """period_s: how often nodes beat; may be set at any time. bounds: of every detector."""
        self.period_s = period_s
        self._bounds = bounds
        self._by_node: dict[str, Session] = {}
        self._detectors: dict[str, Detector] = {}
        self._awaited: dict[str, float] = {}
        self._doubted: dict[str, float] = {}
        self._registered: dict[str, deque[float]] = {}

    @property
    def grace_s(self) -> float:
        """Time in which a node that said goodbye is to come back, seconds."""
        return max(GOODBYE_WAIT_S, MISSED_BEATS_MIN * self.period_s)

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

    def awaited(self) -> frozenset[str]:
        """Nodes that are to come back."""
        return frozenset(self._awaited)

    def doubt(self, node_ids: frozenset[str], now_s: float) -> None:
        """Those of the awaited nodes of which nothing else is heard either, as things are now.

        They are lost sooner, unless something is heard of them in the meantime: a new leader waits
        for the agents of the machines that live, and not for the one its predecessor died with.
        """
        wait_s = max(DOUBTED_S, MISSED_BEATS_MIN * self.period_s)
        self._doubted = {
            node_id: self._doubted.get(node_id, now_s + wait_s)
            for node_id in node_ids & self._awaited.keys()
        }

    def postpone(self, by_s: float) -> None:
        """Nobody could be heard for that long: every deadline moves."""
        for node_id in self._by_node:
            self._detectors[node_id].postpone(by_s)
        for node_id in self._awaited:
            self._awaited[node_id] += by_s
        for node_id in self._doubted:
            self._doubted[node_id] += by_s

    def register(self, node_id: str, session_id: str, now_s: float) -> None:
        """Open a session, in place of the node's older one.

        Raises Unavailable, with nothing changed, for a node that comes too often.
        """
        self._count_registration(node_id, now_s)
        self._await_no_more(node_id)
        self._by_node[node_id] = Session(node_id, session_id)
        detector = self._detectors.get(node_id)
        if detector is None:
            detector = Detector(period_s=self.period_s, bounds=self._bounds)
            self._detectors[node_id] = detector
        detector.period_s = self.period_s
        detector.begin(now_s)

    def beat(self, node_id: str, session_id: str, now_s: float) -> None:
        """The node is heard. Raises FailedPrecondition for a session that is over."""
        self.check(node_id, session_id)
        detector = self._detectors[node_id]
        detector.beat(now_s)
        detector.period_s = self.period_s  # what the node is told now

    def disconnect(self, node_id: str, session_id: str) -> None:
        """The session's connection was closed, by whatever: a hint, if it still is the session."""
        session = self._by_node.get(node_id)
        if session is not None and session.session_id == session_id:
            self._detectors[node_id].disconnect()

    def suspects(self, now_s: float) -> frozenset[str]:
        """Nodes with a session that are late, or not trusted again yet."""
        return frozenset(
            node_id
            for node_id in self._by_node
            if self._detectors[node_id].verdict(now_s) is Verdict.SUSPECT
        )

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
        self._await_no_more(node_id)
        self._detectors.pop(node_id, None)
        self._registered.pop(node_id, None)

    def expire(self, now_s: float) -> list[str]:
        """Take out and name the nodes whose time is over."""
        late = [node_id for node_id in self._by_node if self._deadline_s(node_id) <= now_s]
        for node_id in late:
            self._detectors[node_id].fail(now_s)
            del self._by_node[node_id]
        lost = [node_id for node_id in self._awaited if self._awaited_until_s(node_id) <= now_s]
        for node_id in lost:
            self._await_no_more(node_id)
        return sorted({*late, *lost})

    def next_deadline_s(self) -> float | None:
        """When `expire` next has something to say, unless beats come in."""
        deadlines = [self._deadline_s(node_id) for node_id in self._by_node]
        return min((*deadlines, *map(self._awaited_until_s, self._awaited)), default=None)

    def _count_registration(self, node_id: str, now_s: float) -> None:
        """What is refused does not count: whoever keeps trying gets in when the time has passed."""
        times = self._registered.setdefault(node_id, deque(maxlen=REGISTRATIONS_MAX))
        if len(times) == REGISTRATIONS_MAX:
            left_s = times[0] + REGISTRATIONS_PERIOD_S - now_s
            if left_s > 0:
                raise Unavailable(
                    f"node {node_id} has registered {REGISTRATIONS_MAX} times within"
                    f" {REGISTRATIONS_PERIOD_S:g} s: try again in {left_s:.1f} s; more than one"
                    " agent may be running with this node's identity"
                )
        times.append(now_s)

    def _deadline_s(self, node_id: str) -> float:
        return self._detectors[node_id].next_wakeup()

    def _awaited_until_s(self, node_id: str) -> float:
        until_s = self._awaited[node_id]
        return min(until_s, self._doubted.get(node_id, until_s))

    def _await_no_more(self, node_id: str) -> None:
        self._awaited.pop(node_id, None)
        self._doubted.pop(node_id, None)
