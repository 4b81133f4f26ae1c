"""Every recorded command on swarms again, on a lab of ours: equal, or listed with its reason."""

from __future__ import annotations

import shutil

import pytest

from tests.conformance.comparing import check
from tests.conformance.swarm.differences import BY_KERNEL, DIFFERENCES
from tests.conformance.swarm.playing import Player
from tests.conformance.swarm.recording import GROUPS
from tests.conformance.swarm.site import a_site

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(900),
    pytest.mark.skipif(shutil.which("docker") is None, reason="the docker command is missing"),
]

COMMANDS_MIN = 150


def test_the_command_line_behaves_on_a_swarm_as_recorded():
    with a_site() as site:
        player = Player(site)
        found = [each for group in GROUPS for each in player.play(group)]
    assert player.played >= COMMANDS_MIN
    check(found, DIFFERENCES, may_agree=BY_KERNEL)
