"""The comparison of swarms' output: what it forgives, what it must not, and that lists are used."""

from __future__ import annotations

import pytest

from tests.conformance.swarm.differences import DIFFERENCES, KNOWN_NOWHERE
from tests.conformance.swarm.normal import normal
from tests.conformance.swarm.recording import GROUPS, INPUTS, KNOWN, NOT_COMPARED

PLACES = {(group.name, one.cmd) for group in GROUPS for one in group.commands()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("mnwcjgba6n1kl122v9byze6ia *   vm", "5uawecwc5eyfiadaw3axauh64 * vm"),
        ("rcw5cev8zkeb   st_web  0/2", "bgnxll09xr9a     st_web    0/2"),
        ("SWMTKN-1-<50 base36>-<25 base36>", f"SWMTKN-1-{'0' * 50}-{'z' * 25}"),
        ("Addr: 10.77.0.1:2377", "Addr: 10.89.3.2:2377"),
        ("verify: Waiting 2 seconds to verify that tasks are stable...\njob complete",
         "overall progress: 0 out of 2 tasks\n1/2: running\njob complete"),
        ("web.1 Running 3 minutes ago", "web.1 Running less than a second ago"),
    ],
)  # fmt: skip
def test_what_no_two_swarms_share_is_forgiven(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rcw5cev8zkeb   st_web  0/2", "rcw5cev8zkeb   st_web  1/2"),
        ("web.1 Running 3 minutes ago", "web.1 Shutdown 3 minutes ago"),
        ("verify: Service x converged", "verify: Waiting 1 seconds to verify"),
        ("secret s1 not found", "secret s2 not found"),
    ],
)
def test_what_matters_is_not(one, other):
    assert normal(one) != normal(other)


def test_there_are_enough_commands_and_lists_belong_to_some():
    assert len(PLACES) >= 200
    assert INPUTS.keys() | NOT_COMPARED.keys() | DIFFERENCES.keys() <= PLACES
    assert not KNOWN_NOWHERE
    words = "\n".join(cmd for _, cmd in PLACES)
    assert [known for known in KNOWN if known not in words] == []
