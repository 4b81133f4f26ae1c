"""Who may use the node's unix sockets: root and the group `shoal`, nobody else. Blocks."""

from __future__ import annotations

import grp
import os
from pathlib import Path

GROUP = "shoal"


def open_to_group(socket_path: Path) -> None:
    """Let root and the group `shoal` use a socket, nobody else."""
    group_id = shoal_group()
    os.chown(socket_path, 0, 0 if group_id is None else group_id)
    socket_path.chmod(0o660)


def shoal_group() -> int | None:
    """Id of the group `shoal`, None where there is none."""
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None
