"""Sessions against a model: one per node, expired once, never while it beats in time."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manager.dispatcher.core import FIRST_CONTACT_S, MISSED_BEATS_MAX, Sessions
from shoal.errors import FailedPrecondition

NODES = st.sampled_from(["n1", "n2", "n3"])


class SessionsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions(period_s=1.0)
        self.now_s = 100.0
        self.count = 0
        self.open: dict[str, tuple[str, float]] = {}
        self.awaited: dict[str, float] = {}

    @rule(seconds=st.sampled_from([0.0, 0.5, 1.0, 3.9, 4.0, 10.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(node=NODES)
    def register(self, node: str) -> None:
        self.count += 1
        self.sessions.register(node, f"s{self.count}", self.now_s)
        self.open[node] = (f"s{self.count}", self.now_s + self.grace())
        self.awaited.pop(node, None)

    @rule(node=NODES, stale=st.booleans())
    def beat(self, node: str, stale: bool) -> None:
        session_id = "stale" if stale else self.open.get(node, ("none", 0))[0]
        if stale or node not in self.open:
            with pytest.raises(FailedPrecondition, match="session is over: register again"):
                self.sessions.beat(node, session_id, self.now_s)
            return
        self.sessions.beat(node, session_id, self.now_s)
        self.open[node] = (session_id, self.now_s + self.grace())

    @rule(node=NODES, stale=st.booleans())
    def close(self, node: str, stale: bool) -> None:
        session_id = "stale" if stale else self.open.get(node, ("none", 0))[0]
        closes = node in self.open and not stale
        assert self.sessions.close(node, session_id) is closes
        if closes:
            del self.open[node]

    @rule(node=NODES)
    def forget(self, node: str) -> None:
        self.sessions.forget(node)
        self.open.pop(node, None)
        self.awaited.pop(node, None)

    @rule(nodes=st.frozensets(NODES))
    def expect(self, nodes: frozenset[str]) -> None:
        self.sessions.expect(nodes, self.now_s)
        wait_s = max(FIRST_CONTACT_S, self.grace())
        for node in nodes - self.open.keys():
            self.awaited.setdefault(node, self.now_s + wait_s)

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def stall(self, seconds: float) -> None:
        self.sessions.postpone(seconds)
        self.open = {node: (key, at + seconds) for node, (key, at) in self.open.items()}
        self.awaited = {node: at + seconds for node, at in self.awaited.items()}

    @rule(period_s=st.sampled_from([0.1, 1.0, 60.0]))
    def change_period(self, period_s: float) -> None:
        self.sessions.period_s = period_s

    @rule()
    def expire(self) -> None:
        late = {node for node, (_, at_s) in self.open.items() if at_s <= self.now_s}
        late |= {node for node, at_s in self.awaited.items() if at_s <= self.now_s}
        assert self.sessions.expire(self.now_s) == sorted(late)
        assert self.sessions.expire(self.now_s) == []
        for node in late:
            self.open.pop(node, None)
            self.awaited.pop(node, None)

    @invariant()
    def same(self) -> None:
        assert self.sessions.connected() == self.open.keys()
        assert self.sessions.known() == self.open.keys() | self.awaited.keys()
        deadlines = [at_s for _, at_s in self.open.values()] + list(self.awaited.values())
        assert self.sessions.next_deadline_s() == min(deadlines, default=None)
        for node, (session_id, _) in self.open.items():
            self.sessions.check(node, session_id)
            assert self.sessions.is_connected(node)

    def grace(self) -> float:
        return self.sessions.period_s * MISSED_BEATS_MAX


TestSessions = SessionsMachine.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
