"""`python -m tests.conformance.engine [GROUP ...]`: play recordings, show differences; root."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.conformance.comparing import show
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
            bad += show(player.play(group), DIFFERENCES)
    print(f"\n{player.played} commands, {bad} unexplained differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
