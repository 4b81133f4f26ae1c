"""The comparison itself: what it forgives, and what it must not."""

from __future__ import annotations

import pytest

from tests.conformance.engine.recording import GROUPS, INPUTS, recorded
from tests.conformance.normal import agrees, normal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a" * 63 + "1", "b" * 63 + "2"),
        ("sha256:" + "0" * 64, "sha256:" + "f" * 64),
        ("c1  Up 3 seconds   x", "c1 Up 2 minutes x"),
        ("Exited (0) Less than a second ago", "Exited (0) 5 seconds ago"),
        ("2026-11-24T02:33:18Z", "2027-01-01T00:00:00.123456789Z"),
        ("1.99MB", "2.01 MB"),
        ("172.17.0.2 al bd8820932af7 c1", "172.30.9.7 al 0123456789ab c1"),
        ("brave_hopper", "strange_franklin"),
        ("\x1b[Hx\r\n", "x\n"),
    ],
)
def test_what_no_two_runs_share_is_forgiven(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Exited (0) 5 seconds ago", "Exited (1) 5 seconds ago"),
        ("No such container: a", "No such container: b"),
        ("c1\nc2", "c2\nc1"),
        ("", "x"),
    ],
)
def test_what_matters_is_not(one, other):
    assert not agrees(one, other, cut=False)


def test_of_cut_output_the_end_counts():
    assert agrees("half a li\nsecond\nthird", "first\nsecond\nthird", cut=True)
    assert not agrees("half a li\nsecond\nthird", "first\nsecond\nfourth", cut=True)


def test_there_are_enough_commands_and_inputs_belong_to_some():
    played = [one for group in GROUPS for one in recorded(group) if one.is_played]
    assert len(played) >= 150
    assert {one.cmd for one in played} >= INPUTS.keys()
