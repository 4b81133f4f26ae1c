"""The engine's id: made once, kept, shown in `/info`. Blocks."""

from __future__ import annotations

import os
import secrets
import uuid
from pathlib import Path

_FILE = "id"


def read_or_make_id(directory: Path) -> str:
    """The id of this node's engine. Raises: OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / _FILE
    try:
        found = path.read_text(encoding="ascii").strip()
        return str(uuid.UUID(found))
    except (FileNotFoundError, ValueError):
        made = str(uuid.UUID(bytes=secrets.token_bytes(16), version=4))
        unnamed = directory / f"{_FILE}.new"
        unnamed.write_text(made + "\n", encoding="ascii")
        os.replace(unnamed, path)
        return made
