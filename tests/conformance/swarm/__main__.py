"""`python -m tests.conformance.swarm [GROUP ...]`: play recordings, show differences; root."""

from __future__ import annotations

import sys

from tests.conformance.comparing import show
from tests.conformance.swarm.differences import DIFFERENCES
from tests.conformance.swarm.playing import Player
from tests.conformance.swarm.recording import GROUPS
from tests.conformance.swarm.site import a_site


def main() -> int:
    wanted = sys.argv[1:]
    bad = 0
    with a_site() as site:
        player = Player(site)
        for group in GROUPS:
            if not wanted or group.name in wanted:
                bad += show(player.play(group), DIFFERENCES)
    print(f"\n{player.played} commands, {bad} unexplained differences")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
