"""`python -m tests.conformance.engine [GROUP ...]`: play recordings, show differences; root."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.conformance.engine.differences import DIFFERENCES
from tests.conformance.engine.playing import Player
from tests.conformance.engine.recording import GROUPS
from tests.conformance.engine.site import a_site


def main() -> int:
    groups = sys.argv[1:] or GROUPS
    bad = 0
    with a_site() as (node, registry), tempfile.TemporaryDirectory() as scratch:
        player = Player(node, Path(scratch), registry)
        for group in groups:
            for found in player.play(group):
                reason = DIFFERENCES.get((found.group, found.cmd))
                bad += reason is None
                print(f"\n=== {group}: {found.cmd[:200]}\n{', '.join(found.what)}: {reason or '?'}")
                print(f"-- recorded\n{found.expected[:1500]}\n-- here\n{found.found[:1500]}")
    print(f"\n{player.played} commands, {bad} unexplained differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
