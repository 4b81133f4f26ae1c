"""What is known of a task's health, beside its container: for the next worker and for the engine.

One small file per container, replaced by rename, gone with the container. A file that is missing,
damaged or of another version says nothing: the checks then begin anew.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from shoal.model.row import Row
from worker.health.core import Health
from worker.runtime.lean.files import write_atomically

HEALTH_FILE = "health.json"
VERSION = 1


class KeptHealth(Row, frozen=True):
    """`exec_id`: the newest check, which may still run."""

    health: Health
    exec_id: str = ""
    version: int = VERSION


def save(directory: str, kept: KeptHealth) -> None:
    """Replace the file. Raises: OSError."""
    write_atomically(f"{directory}/{HEALTH_FILE}", msgspec.json.encode(kept).decode())


def load(directory: str) -> KeptHealth | None:
    """What the file says; None: nothing."""
    try:
        content = Path(directory, HEALTH_FILE).read_bytes()
        kept = msgspec.json.decode(content, type=KeptHealth)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return kept if kept.version == VERSION else None
