"""The failure detector: suspicion, bounds, hysteresis, and traces of busy machines."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manager.dispatcher.detector import (
    FAILURES_MAX,
    PROBATION_S,
    REGULAR_AFTER,
    Bounds,
    Detector,
    Verdict,
)

PERIOD_S = 0.25
BOUNDS = Bounds()
TRACES = json.loads((Path(__file__).parent / "beats_under_load.json").read_text())

gaps = st.lists(st.floats(0.0, 5.0), max_size=150)


def beating(intervals: list[float], *, period_s: float = PERIOD_S) -> tuple[Detector, float]:
    """A detector that heard these intervals, and the time now."""
    detector = Detector(period_s=period_s)
    now_s = 1000.0
    detector.begin(now_s)
    for interval_s in intervals:
        now_s += interval_s
        detector.beat(now_s)
    return detector, now_s


def false_alarms(intervals: list[float]) -> int:
    """How often a node that beats in these intervals is called dead."""
    detector, now_s, alarms = Detector(period_s=PERIOD_S), 1000.0, 0
    detector.begin(now_s)
    for interval_s in intervals:
        now_s += interval_s
        alarms += detector.verdict(now_s) is Verdict.DEAD
        detector.beat(now_s)
    return alarms


@given(gaps, st.lists(st.floats(0, 20), min_size=2), st.booleans())
def test_suspicion_never_falls_between_events_and_reaches_one_at_the_deadline(
    intervals, waits, cut
):
    detector, now_s = beating(intervals)
    before = detector.suspicion(now_s)
    assert before == 0
    if cut:
        detector.disconnect()
    seen = [detector.suspicion(now_s + wait_s) for wait_s in sorted(waits)]
    assert seen == sorted(seen)
    deadline_s = detector.next_wakeup()
    assert detector.verdict(deadline_s) is Verdict.DEAD
    assert detector.suspicion(deadline_s) == pytest.approx(1)
    assert detector.verdict(deadline_s - 0.01) is Verdict.SUSPECT


@given(gaps, st.sampled_from([0.1, 0.25, 1.0, 10.0]), st.booleans())
def test_the_tolerance_stays_within_its_bounds(intervals, period_s, cut):
    detector, _ = beating(intervals, period_s=period_s)
    if cut:
        detector.disconnect()
    least_s = max(BOUNDS.least_s, 4 * period_s)
    assert least_s <= detector.tolerance_s <= max(BOUNDS.most_s, least_s)


@given(st.lists(st.floats(0.2, 0.5), min_size=REGULAR_AFTER, max_size=200))
def test_a_regular_node_is_known_dead_within_two_seconds(intervals):
    detector, now_s = beating(intervals)
    assert detector.verdict(now_s) is Verdict.ALIVE
    assert detector.next_wakeup() - now_s <= 2.0


def test_a_new_session_is_given_time_until_its_beats_say_something():
    detector, now_s = beating([PERIOD_S] * (REGULAR_AFTER - 1))
    assert detector.tolerance_s == BOUNDS.fresh_s
    detector.beat(now_s + PERIOD_S)
    assert detector.tolerance_s == BOUNDS.least_s


@given(st.integers(0, 1 << 32), st.floats(0.0, 0.45))
def test_no_false_alarm_on_a_busy_machine(seed, busy):
    """Delays with a long tail, as a beat has that waits for a processor: up to 1.4 s."""
    rng = random.Random(seed)
    delays = [min(rng.expovariate(1 / (busy + 0.001)), 1.4) for _ in range(400)]
    assert false_alarms([PERIOD_S + delay_s for delay_s in delays]) == 0


@given(st.integers(0, 1 << 32))
def test_delays_that_grow_step_by_step_are_followed(seed):
    """Load that rises: each delay at most three times the longest before it."""
    rng = random.Random(seed)
    longest_s, intervals = 0.1, [PERIOD_S] * 20
    for _ in range(200):
        delay_s = min(rng.uniform(0, 3 * longest_s), 7.0)
        longest_s = max(longest_s, delay_s)
        intervals.append(PERIOD_S + delay_s)
    assert false_alarms(intervals) == 0


@pytest.mark.parametrize("name", TRACES)
def test_no_false_alarm_on_recorded_beats(name):
    trace = TRACES[name]
    assert len(trace) >= 50
    assert false_alarms(trace) == 0


def test_load_widens_the_tolerance_and_quiet_narrows_it_again():
    detector, now_s = beating([PERIOD_S] * 20 + [1.25] + [PERIOD_S] * 20)
    assert detector.tolerance_s == pytest.approx(PERIOD_S + 4 * 1.0)
    for _ in range(100):
        now_s += PERIOD_S
        detector.beat(now_s)
    assert detector.tolerance_s == BOUNDS.least_s


def test_a_closed_connection_shortens_a_long_wait_until_the_next_beat_and_no_short_one():
    detector, now_s = beating([PERIOD_S] * 20 + [1.25])
    detector.disconnect()
    assert detector.tolerance_s == pytest.approx((PERIOD_S + 4 * 1.0) / 2)
    assert detector.verdict(now_s) is not Verdict.DEAD
    detector.beat(now_s + PERIOD_S)
    assert detector.tolerance_s == pytest.approx(PERIOD_S + 4 * 1.0)
    regular, _ = beating([PERIOD_S] * 20)
    regular.disconnect()
    assert regular.tolerance_s == BOUNDS.least_s


def test_a_late_node_is_suspected_until_it_has_beaten_three_times():
    detector, now_s = beating([PERIOD_S] * 20)
    assert detector.verdict(now_s + 0.8) is Verdict.ALIVE
    now_s += 1.0
    assert detector.verdict(now_s) is Verdict.SUSPECT
    detector.beat(now_s)
    for _ in range(3):
        assert detector.verdict(now_s) is Verdict.SUSPECT
        now_s += PERIOD_S
        detector.beat(now_s)
    assert detector.verdict(now_s) is Verdict.ALIVE


def test_a_node_that_is_told_to_beat_more_rarely_is_waited_for_at_once():
    detector, now_s = beating([PERIOD_S] * 20)
    detector.period_s = 5.0  # what the answer to this beat says
    assert detector.verdict(now_s + 5.0) is Verdict.ALIVE
    assert detector.next_wakeup() == pytest.approx(now_s + 20.0)
    detector.beat(now_s + 5.0)
    assert detector.verdict(now_s + 10.0) is Verdict.ALIVE


def test_a_node_that_is_told_to_beat_more_often_may_sleep_as_before_once_more():
    detector, now_s = beating([5.0] * 20, period_s=5.0)
    before_s = detector.tolerance_s
    detector.period_s = PERIOD_S
    assert detector.tolerance_s == before_s
    now_s += 5.0
    detector.beat(now_s)
    assert detector.tolerance_s == BOUNDS.least_s, "nothing of it was a delay"
    assert detector.verdict(now_s + PERIOD_S) is Verdict.ALIVE


def test_the_wait_for_trust_doubles_with_each_failure_and_is_bounded():
    detector, now_s = Detector(period_s=PERIOD_S), 1000.0
    waits = []
    for _ in range(FAILURES_MAX + 3):
        detector.begin(now_s)
        started_s = now_s
        while detector.verdict(now_s) is Verdict.SUSPECT:
            now_s += PERIOD_S
            detector.beat(now_s)
        waits.append(now_s - started_s)
        detector.fail(now_s)
    doubled = [0.0, 0.0, *(PROBATION_S * 2**power for power in range(FAILURES_MAX - 1))]
    assert waits[: len(doubled)] == pytest.approx(doubled)
    assert max(waits) <= 80
    detector.begin(now_s + 301)
    assert detector.verdict(now_s + 301) is Verdict.ALIVE


@given(gaps, st.floats(0, 100))
def test_a_stall_of_the_listener_costs_the_node_nothing(intervals, stall_s):
    detector, now_s = beating(intervals)
    left_s = detector.next_wakeup() - now_s
    detector.postpone(stall_s)
    assert detector.next_wakeup() - (now_s + stall_s) == pytest.approx(left_s)
