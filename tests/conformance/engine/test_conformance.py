"""Every recorded command again, against a node of ours: equal, or listed with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.comparing import check
from tests.conformance.engine.differences import DIFFERENCES
from tests.conformance.engine.playing import Player
from tests.conformance.engine.recording import GROUPS
from tests.conformance.engine.site import a_site

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]

COMMANDS_MIN = 150


def test_the_command_line_behaves_as_recorded(tmp_path: Path):
    with a_site() as (node, registry):
        player = Player(node, tmp_path, registry)
        found = [each for group in GROUPS for each in player.play(group)]
    assert player.played >= COMMANDS_MIN
    check(found, DIFFERENCES)
