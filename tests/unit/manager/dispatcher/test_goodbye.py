"""A node that says goodbye has the grace of one that falls silent, and no more."""

from __future__ import annotations

from manager.dispatcher.core import GOODBYE_WAIT_S, Sessions


def sessions_after_goodbye() -> Sessions:
    sessions = Sessions(period_s=1.0)
    sessions.register("n1", "s1", 0.0)
    assert sessions.close("n1", "s1")
    sessions.expect(frozenset(("n1",)), 10.0, wait_s=sessions.grace_s)
    return sessions


def test_a_node_that_does_not_come_back_is_down_after_the_grace() -> None:
    sessions = sessions_after_goodbye()
    assert sessions.expire(10.0 + GOODBYE_WAIT_S - 0.1) == []
    assert sessions.expire(10.0 + GOODBYE_WAIT_S) == ["n1"]
    assert sessions.expire(1000.0) == []


def test_a_node_that_comes_back_in_time_is_not_down() -> None:
    sessions = sessions_after_goodbye()
    sessions.register("n1", "s2", 12.0)
    sessions.beat("n1", "s2", 14.5)
    assert sessions.expire(15.0) == []


def test_the_first_deadline_stays_when_the_node_is_expected_again() -> None:
    sessions = sessions_after_goodbye()
    sessions.expect(frozenset(("n1",)), 13.0)
    assert sessions.expire(10.0 + GOODBYE_WAIT_S) == ["n1"]
