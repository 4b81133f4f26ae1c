"""docs/compat.md names tests that exist, and says of each row whether it is the same."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/compat.md").read_text(encoding="utf-8")
TEST = re.compile(r"`([\w/]+\.py)::(\w+)`")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith("| Swarm |")
]


def test_every_test_that_is_named_exists():
    named = TEST.findall(TEXT)
    assert len(named) > 100
    known = {path: (ROOT / "tests" / path).read_text(encoding="utf-8") for path, _ in named}
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in known[path]]
    assert not missing


def test_every_row_says_what_we_do_and_names_a_test():
    assert len(ROWS) > 80
    for row in ROWS:
        assert len(row) == 3, row
        assert re.match(r"same\b|differs: .|not there: .", row[1]), row
        assert TEST.search(row[2]), row
