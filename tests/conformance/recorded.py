"""What the docker command line did against dockerd: commands in order, with all they printed.

Recorded with docker 28.2.2 against dockerd 20.10.24. Long output was cut at its beginning.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

CUT_AT = 690
ERRORS_CUT_AT = 500
"""Output, and errors, that are so long may have lost their beginning."""


class Recorded(msgspec.Struct, frozen=True):
    """One command. rc: its exit code, negative: the signal that ended it, or `timeout`.

    node: which of the recording's nodes it was given to.
    """

    cmd: str
    rc: int | str
    stdout: str
    stderr: str
    node: int = 1

    @property
    def is_played(self) -> bool:
        """Whether it can be played again: not what a person did at a terminal, or ended by hand."""
        by_hand = isinstance(self.rc, str) or self.rc < 0 or self.rc in (124, 137)
        return not self.cmd.startswith("PTY ") and not by_hand


def read(directory: Path, group: str) -> list[Recorded]:
    """A group's commands in order."""
    return msgspec.json.decode((directory / f"{group}.json").read_bytes(), type=list[Recorded])
