"""What is remembered about labs on disk, and the lock that makes changes to one lab one at a time.

`<directory>/lab.json` is written before anything of the lab is made and removed after everything
is gone, so a crash at any point leaves enough to clean up. Files are replaced, never half-written.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from shoal.errors import FailedPrecondition, Internal, NotFound
from swarmctl.lab.plan import LabPlan, check_name

DEFAULT_DIRECTORY = "/var/lib/shoal-lab"
_LOCKS = "/run/lock"
_POLL_S = 0.05

Phase = Literal["starting", "up"]


class LabRecord(msgspec.Struct, frozen=True):
    """A lab on disk. `previous_context` is selected again when the lab goes down."""

    plan: LabPlan
    created_at_ns: int
    phase: Phase = "starting"
    previous_context: str = ""


class NodeRecord(msgspec.Struct, frozen=True):
    """A node's swarmd: pid and start time; `killed` once a user ended it."""

    pid: int
    start_ticks: int
    killed: bool = False


def write(path: str, value: LabRecord | NodeRecord) -> None:
    """Replace the file with `value` as JSON."""
    scratch = f"{path}.new"
    Path(scratch).write_bytes(msgspec.json.format(msgspec.json.encode(value)) + b"\n")
    os.replace(scratch, path)


def read_node(path: str) -> NodeRecord | None:
    """The node's record, None when it never started. Raises: Internal when it is not readable."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=NodeRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise Internal(f"{path}: {error}") from error


def find_lab(root: str, name: str) -> LabRecord | None:
    """The lab's record below `root`, None when there is no such lab."""
    path = lab_file(f"{root}/{name}")
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=LabRecord)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except msgspec.DecodeError as error:
        raise Internal(f"{path}: {error}") from error


def read_lab(root: str, name: str) -> LabRecord:
    """The lab's record. Raises: NotFound, naming the labs there are."""
    check_name(name)
    record = find_lab(root, name)
    if record is None:
        known = ", ".join(list_labs(root)) or "none"
        raise NotFound(f"no lab called {name!r} in {root} (there are: {known})")
    return record


def list_labs(root: str) -> list[str]:
    """Names of the labs below `root`, sorted."""
    try:
        entries = sorted(os.listdir(root))
    except FileNotFoundError:
        return []
    return [name for name in entries if os.path.exists(lab_file(f"{root}/{name}"))]


def lab_file(directory: str) -> str:
    """Where a lab's record is; directory: the lab's own."""
    return f"{directory}/lab.json"


@contextmanager
def lock(name: str, *, timeout_s: float = 120.0) -> Iterator[None]:
    """Hold the machine-wide lock of that name. Raises: FailedPrecondition after `timeout_s`."""
    os.makedirs(_LOCKS, exist_ok=True)
    path = f"{_LOCKS}/shoal-lab-{name}.lock"
    deadline_s = time.monotonic() + timeout_s
    while (descriptor := _try_lock(path)) is None:
        if time.monotonic() > deadline_s:
            raise FailedPrecondition(
                f"another swarmctl has been working on {name!r} for {timeout_s:g} s ({path})"
            )
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        # Removed while held: whoever waits sees that the file it locked is no longer this one.
        os.unlink(path)
        os.close(descriptor)


def _try_lock(path: str) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), os.stat(path)):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None
