"""How often a long-lived process looks for garbage.

Python's defaults suit scripts: a collection for every 700 objects that are left over, as a few
calls in progress are. Their cycles are as good as none, so all of that looking finds nothing.
"""

from __future__ import annotations

import gc

COLLECT_AFTER = (5_000, 20, 20)
"""Objects left over, then younger collections, until a generation is looked at. Measured with
writes over gRPC, on a busy machine: 0 to 25 % less processor time than with the defaults; higher
numbers gain nothing more."""


def settle() -> None:
    """What lives by now lives as long as the process: keep it out of every collection."""
    gc.set_threshold(*COLLECT_AFTER)
    gc.freeze()
