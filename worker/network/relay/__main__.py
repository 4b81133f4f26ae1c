"""Entry of the relay process; started by the worker, not by people. Becomes nobody's child."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from worker.network.relay.server import run


def main() -> None:
    """`python -m worker.network.relay SOCKET`: returns at once, the process goes on."""
    path = Path(sys.argv[1])
    if os.fork():
        return
    path.with_suffix(".pid").write_text(f"{os.getpid()}\n")
    try:
        run(path)
    finally:
        path.with_suffix(".pid").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
