"""Precedence over whatever else a shared machine does, for both contenders alike.

Off unless SHOAL_BENCH_URGENT is set (`python -m bench --urgent`), since it starves everybody else
for minutes. A contender that waits (for timers, locks, the kernel) hardly notices a busy machine,
one that computes does; on a machine that is not one's own, ratios are wrong without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "SHOAL_BENCH_URGENT"

_CPU = Path("/sys/fs/cgroup/cpu")
_NICE = "-20"
_SHARES = "88761"  # the scheduler's weight of nice -20
_WEIGHT = "10000"  # the most there is in version 2


@contextmanager
def urgent(*groups: str) -> Iterator[None]:
    """Prefer these control groups, made if missing, and this process's session.

    What was there before is put back.
    """
    if not os.environ.get(VARIABLE):
        yield
        return
    before: list[tuple[Path, str]] = []
    _set(before, Path("/proc/self/autogroup"), _NICE)
    for group in groups:
        version_1 = (_CPU / "cpu.shares").exists()
        root = _CPU if version_1 else Path("/sys/fs/cgroup")
        (root / group.strip("/")).mkdir(exist_ok=True)
        knob = root / group.strip("/") / ("cpu.shares" if version_1 else "cpu.weight")
        _set(before, knob, _SHARES if version_1 else _WEIGHT)
    try:
        yield
    finally:
        for path, value in reversed(before):
            if path.exists():
                path.write_text(value)


def _set(before: list[tuple[Path, str]], path: Path, value: str) -> None:
    try:
        known = path.read_text().rpartition("nice")[2].strip()
        path.write_text(value)
    except FileNotFoundError:  # a kernel without autogroups, a hierarchy without the controller
        return
    before.append((path, known))
