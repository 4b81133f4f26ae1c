"""Goal: the conversations of tests/golden/raft stay word for word what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.manager.raft.conversation import SCENARIOS, replay

PATHS = sorted(SCENARIOS.glob("*.txt"))


def test_there_are_scenarios() -> None:
    assert len(PATHS) >= 15


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_conversation(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# "), "a scenario begins with its goal"
    assert replay(text) == text, "read the difference, then run conversation --update"
