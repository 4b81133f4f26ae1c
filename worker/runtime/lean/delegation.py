"""Makes room for controllers on version 2: a group that hands them down holds no process itself.

The machine's own root is free of that rule. But the top group that swarmd sees in a container, and
the group of its own service where that is the parent of containers (`Delegate=yes`), are ordinary
groups it lives in. All who live there move to a leaf below, as Docker does in such a container.
Invariant: only a group this process lives in itself is emptied. Refuses one where others live.
"""

from __future__ import annotations

import os

from worker.runtime.lean import files

LEAF = "daemons"
_ROUNDS = 100  # of those who are born meanwhile


def vacate(group: str) -> None:
    """Move everybody in the group to its leaf, if they are in the way. Raises: OSError."""
    if not os.path.exists(f"{group}/cgroup.type"):
        return  # the machine's root
    present = _members(group)
    if not present:
        return
    if os.getpid() not in present:
        raise OSError(16, "processes live in this group itself, which version 2 does not allow "
                      "above containers; move them into a group below it", group)  # fmt: skip
    leaf = f"{group}/{LEAF}"
    os.makedirs(leaf, exist_ok=True)
    for _ in range(_ROUNDS):
        for pid in present:
            _move(pid, leaf)
        if not (present := _members(group)):
            return
    raise OSError(16, "its processes do not stay in the group below", group)


def _members(group: str) -> list[int]:
    return [int(pid) for pid in files.read_text(f"{group}/cgroup.procs").split()]


def _move(pid: int, group: str) -> None:
    fd = os.open(f"{group}/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(pid).encode())
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
