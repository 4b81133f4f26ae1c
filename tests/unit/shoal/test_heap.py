"""What lives when a process has settled is looked at by no collection."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc
from shoal import heap
rows = [[number] for number in range(100_000)]
heap.settle()
assert gc.get_threshold() == heap.COLLECT_AFTER
assert gc.get_freeze_count() >= len(rows)
cycle = []
cycle.append(cycle)
del cycle
assert gc.collect() == 1
print("settled")
"""


def test_what_lives_is_kept_out_and_cycles_are_found_as_before():
    done = subprocess.run([sys.executable, "-P", "-c", PROGRAM], capture_output=True, check=True)
    assert done.stdout == b"settled\n"
