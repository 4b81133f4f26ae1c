"""What the docker command line did against dockerd: commands in order, with all they printed.

Recorded with docker 28.2.2 against dockerd 20.10.24 and a registry on port 5000. Long output was
cut at its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

CUT_AT = 700
"""Output that is longer than this may have lost its beginning."""
GROUPS = (
    "basic", "run", "container", "image", "volume", "network", "system", "attach", "registry",
)  # fmt: skip

_HERE = Path(__file__).parent / "recordings"

INPUTS: Mapping[str, str] = {
    "docker run -i --rm busybox cat": "line1\nline2\n",
    "docker run -i --rm -a stdin -a stdout busybox cat": "x\n",
    "docker start -ai cc2": "abc\n",
    "docker exec -i c1 cat": "stdin-data\n",
}
"""What was typed; nothing else was."""


class Recorded(msgspec.Struct, frozen=True):
    """One command. rc: its exit code, negative: the signal that ended it, or `timeout`."""

    cmd: str
    rc: int | str
    stdout: str
    stderr: str

    @property
    def is_played(self) -> bool:
        """Whether it can be played again: not what a person did at a terminal, or ended by hand."""
        by_hand = isinstance(self.rc, str) or self.rc < 0 or self.rc in (124, 137)
        return not self.cmd.startswith("PTY ") and not by_hand


def recorded(group: str) -> list[Recorded]:
    """A group's commands in order."""
    return msgspec.json.decode((_HERE / f"{group}.json").read_bytes(), type=list[Recorded])
