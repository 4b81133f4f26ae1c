"""Sessions against a model: one per node, expired once, never while it beats in time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from manager.dispatcher.core import (
    DOUBTED_S,
    FIRST_CONTACT_S,
    REGISTRATIONS_MAX,
    REGISTRATIONS_PERIOD_S,
    Sessions,
)
from manager.dispatcher.detector import MISSED_BEATS_MIN, Detector, Verdict
from shoal.errors import FailedPrecondition, Unavailable

NODES = st.sampled_from(["n1", "n2", "n3"])


class SessionsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.sessions = Sessions(period_s=1.0)
        self.now_s = 100.0
        self.count = 0
        self.open: dict[str, str] = {}
        self.detectors: dict[str, Detector] = {}
        self.awaited: dict[str, float] = {}
        self.doubted: dict[str, float] = {}
        self.registered: dict[str, list[float]] = {}

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.9, 4.0, 10.0, 31.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(node=NODES)
    def register(self, node: str) -> None:
        self.count += 1
        times = self.registered.setdefault(node, [])
        recent = [at for at in times if at > self.now_s - REGISTRATIONS_PERIOD_S]
        if len(recent) == REGISTRATIONS_MAX:
            with pytest.raises(Unavailable):
                self.sessions.register(node, f"s{self.count}", self.now_s)
            return
        self.sessions.register(node, f"s{self.count}", self.now_s)
        times.append(self.now_s)
        self.open[node] = f"s{self.count}"
        self.awaited.pop(node, None)
        self.doubted.pop(node, None)
        detector = self.detectors.setdefault(node, Detector(period_s=1.0))
        detector.period_s = self.sessions.period_s
        detector.begin(self.now_s)

    @rule(node=NODES, stale=st.booleans())
    def beat(self, node: str, stale: bool) -> None:
        session_id = "stale" if stale else self.open.get(node, "none")
        if stale or node not in self.open:
            with pytest.raises(FailedPrecondition, match="session is over: register again"):
                self.sessions.beat(node, session_id, self.now_s)
            return
        self.sessions.beat(node, session_id, self.now_s)
        self.detectors[node].beat(self.now_s)
        self.detectors[node].period_s = self.sessions.period_s

    @rule(node=NODES, stale=st.booleans())
    def close(self, node: str, stale: bool) -> None:
        session_id = "stale" if stale else self.open.get(node, "none")
        closes = node in self.open and not stale
        assert self.sessions.close(node, session_id) is closes
        if closes:
            del self.open[node]

    @rule(node=NODES)
    def forget(self, node: str) -> None:
        self.sessions.forget(node)
        self.open.pop(node, None)
        self.awaited.pop(node, None)
        self.doubted.pop(node, None)
        self.detectors.pop(node, None)
        self.registered.pop(node, None)

    @rule(node=NODES, stale=st.booleans())
    def disconnect(self, node: str, stale: bool) -> None:
        self.sessions.disconnect(node, "stale" if stale else self.open.get(node, "none"))
        if node in self.open and not stale:
            self.detectors[node].disconnect()

    @rule(nodes=st.frozensets(NODES))
    def expect(self, nodes: frozenset[str]) -> None:
        self.sessions.expect(nodes, self.now_s)
        wait_s = max(FIRST_CONTACT_S, MISSED_BEATS_MIN * self.sessions.period_s)
        for node in nodes - self.open.keys():
            self.awaited.setdefault(node, self.now_s + wait_s)

    @rule(nodes=st.frozensets(NODES))
    def doubt(self, nodes: frozenset[str]) -> None:
        self.sessions.doubt(nodes, self.now_s)
        until_s = self.now_s + max(DOUBTED_S, MISSED_BEATS_MIN * self.sessions.period_s)
        doubted = nodes & self.awaited.keys()
        self.doubted = {node: self.doubted.get(node, until_s) for node in doubted}

    def waits(self) -> dict[str, float]:
        """Until when each node is waited for."""
        return {
            node: min(until_s, self.doubted.get(node, until_s))
            for node, until_s in self.awaited.items()
        }

    @rule(seconds=st.sampled_from([0.5, 5.0]))
    def stall(self, seconds: float) -> None:
        self.sessions.postpone(seconds)
        for node in self.open:
            self.detectors[node].postpone(seconds)
        self.awaited = {node: at + seconds for node, at in self.awaited.items()}
        self.doubted = {node: at + seconds for node, at in self.doubted.items()}

    @rule(period_s=st.sampled_from([0.1, 1.0, 60.0]))
    def change_period(self, period_s: float) -> None:
        self.sessions.period_s = period_s

    @rule()
    def expire(self) -> None:
        late = {node for node in self.open if self.detectors[node].next_wakeup() <= self.now_s}
        for node in late:
            self.detectors[node].fail(self.now_s)
        late |= {node for node, at_s in self.waits().items() if at_s <= self.now_s}
        assert self.sessions.expire(self.now_s) == sorted(late)
        assert self.sessions.expire(self.now_s) == []
        for node in late:
            self.open.pop(node, None)
            self.awaited.pop(node, None)
            self.doubted.pop(node, None)

    @invariant()
    def same(self) -> None:
        assert self.sessions.connected() == self.open.keys()
        assert self.sessions.known() == self.open.keys() | self.awaited.keys()
        deadlines = [self.detectors[node].next_wakeup() for node in self.open]
        deadlines += self.waits().values()
        assert self.sessions.next_deadline_s() == min(deadlines, default=None)
        suspects = {
            node
            for node in self.open
            if self.detectors[node].verdict(self.now_s) is Verdict.SUSPECT
        }
        assert self.sessions.suspects(self.now_s) == suspects
        for node, session_id in self.open.items():
            self.sessions.check(node, session_id)
            assert self.sessions.is_connected(node)


TestSessions = SessionsMachine.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_node_registers_three_times_in_eight_seconds():
    sessions = Sessions(period_s=1.0)
    for second in range(REGISTRATIONS_MAX):
        sessions.register("n1", f"s{second}", float(second))
    for now_s in (3.0, 7.9):
        with pytest.raises(Unavailable, match="try again in"):
            sessions.register("n1", "late", now_s)
        sessions.check("n1", "s2")  # the session it has goes on
    sessions.register("n2", "other", 3.0)
    sessions.register("n1", "s3", 8.0)  # refusals did not count
    with pytest.raises(Unavailable):
        sessions.register("n1", "s4", 8.5)
    sessions.register("n1", "s4", 9.0)
    sessions.forget("n1")
    sessions.register("n1", "s5", 9.0)


@given(st.lists(st.floats(0, 30, allow_nan=False), max_size=60))
def test_no_window_holds_more_registrations_than_allowed(pauses):
    sessions, now_s = Sessions(period_s=1.0), 0.0
    taken: list[float] = []
    for number, pause_s in enumerate(pauses):
        now_s += pause_s / 10
        try:
            sessions.register("n1", f"s{number}", now_s)
        except Unavailable:
            assert len([at for at in taken if at > now_s - REGISTRATIONS_PERIOD_S]) >= 3
        else:
            taken.append(now_s)
    for start in taken:
        window = [at for at in taken if start <= at < start + REGISTRATIONS_PERIOD_S]
        assert len(window) <= REGISTRATIONS_MAX
