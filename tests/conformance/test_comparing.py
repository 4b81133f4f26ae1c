"""What a suite does with differences: each has a reason, and each reason a difference."""

from __future__ import annotations

import pytest

from tests.conformance.comparing import Difference, Outcome, check, difference
from tests.conformance.recorded import Recorded

PLACE = ("group", "docker x")
ONE = Recorded(cmd="docker x", rc=1, stdout="", stderr="no such thing: x\n")
FOUND = Difference("group", "docker x", ("stderr",), "a", "b")


def test_what_differs_is_named():
    assert difference("group", ONE, Outcome(1, "", "no such thing: x\n")) is None
    other = difference("group", ONE, Outcome(0, "x\n", "no such thing: x\n"))
    assert other is not None
    assert other.what == ("exit code", "stdout")


def test_a_difference_without_a_reason_fails():
    check([FOUND], {PLACE: "known"})
    with pytest.raises(AssertionError, match="docker x"):
        check([FOUND], {})


def test_a_reason_without_a_difference_fails_unless_it_is_some_machines():
    with pytest.raises(AssertionError, match="take them off the list"):
        check([], {PLACE: "known"})
    check([], {PLACE: "known"}, may_agree={PLACE})
