"""What the agent remembers over its own restarts: its tasks, and its place in the network.

One file per task, to which each new state is appended; the last whole one counts, so a kill -9
loses nothing. They need not survive a power cut (the containers do not either, and the managers
know the rest), so nothing is synced. Why not a new file for every state: each replaced file leaves
a freed inode, which ext4 does not use again for a minute but tries for every file made meanwhile
(a third of this process's time when 100 tasks start), and its data is written to disk at once.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path

import msgspec
import structlog

from shoal.errors import Internal, SwarmError
from shoal.ids import is_id
from shoal.model.objects import Task
from shoal.wire.objects import object_from_bytes, object_to_bytes

FORMAT_VERSION = 1
RECORD_BYTES_MAX = 64 * 1024
"""A task's file is begun anew when it would grow beyond."""
_FRAME = struct.Struct(">II")  # length of the state in bytes, its CRC-32

_log = structlog.get_logger()


class NetworkRecord(msgspec.Struct, frozen=True):
    """What the node needs to open its data plane before a manager answers."""

    index: int
    subnet: str
    data_path_port: int
    managers: tuple[str, ...]
    version: int = FORMAT_VERSION


class Records:
    """Files under the worker's state directory. Blocking, but small: used on the event loop."""

    def __init__(self, directory: Path) -> None:
        self._tasks = directory / "tasks"
        self._network = directory / "network.json"
        self._tasks.mkdir(parents=True, exist_ok=True, mode=0o700)

    def save_task(self, task: Task) -> None:
        """Remember a task with its newest status. Raises: OSError; then the one before stays."""
        data = object_to_bytes(task)
        frame = _FRAME.pack(len(data), zlib.crc32(data)) + data
        path = self._tasks / f"{task.id}.task"
        if not _append(path, frame):
            _replace(path, frame)

    def forget_task(self, task_id: str) -> None:
        """The task is no longer assigned to this node."""
        (self._tasks / f"{task_id}.task").unlink(missing_ok=True)

    def tasks(self) -> list[Task]:
        """Every remembered task. Damaged files are removed, and said so: nobody can use them."""
        found: list[Task] = []
        for path in self._tasks.glob("*.tmp"):
            self._discard(path, "its writing was cut short")
        for path in sorted(self._tasks.glob("*.task")):
            if not is_id(path.stem):
                continue
            try:
                task = object_from_bytes(_last_state(path))
            except (SwarmError, OSError) as error:
                self._discard(path, str(error))
                continue
            if isinstance(task, Task) and task.id == path.stem:
                found.append(task)
            else:
                self._discard(path, "it holds something else")
        return found

    def save_network(self, record: NetworkRecord) -> None:
        """Remember the node's place in the network."""
        _replace(self._network, msgspec.json.encode(record))

    def network(self) -> NetworkRecord | None:
        """The remembered place; None when there is none that can be read."""
        try:
            record = msgspec.json.decode(self._network.read_bytes(), type=NetworkRecord)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError) as error:
            _log.warning("network.record_damaged", path=str(self._network), reason=str(error))
            return None
        if record.version > FORMAT_VERSION:
            _log.warning("network.record_newer", path=str(self._network), version=record.version)
            return None
        return record

    def clear(self) -> None:
        """Forget everything: the node leaves its cluster."""
        for path in self._tasks.glob("*.task"):
            path.unlink(missing_ok=True)
        self._network.unlink(missing_ok=True)

    def _discard(self, path: Path, reason: str) -> None:
        _log.warning("task.record_damaged", path=str(path), reason=reason)
        try:
            path.unlink()
        except OSError as error:
            _log.warning("task.record_not_removed", path=str(path), reason=str(error))


def _append(path: Path, frame: bytes) -> bool:
    """Whether the file took the frame; not when it is full, and never half of it."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and size + len(frame) > RECORD_BYTES_MAX:
            return False
        if os.write(fd, frame) != len(frame):
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return True
    finally:
        os.close(fd)


def _last_state(path: Path) -> bytes:
    """The last whole state; what follows it, cut short by a crash, is cut off.

    Raises: Internal when there is none; OSError.
    """
    content = path.read_bytes()
    end, state = 0, None
    while len(content) - end >= _FRAME.size:
        length, checksum = _FRAME.unpack_from(content, end)
        data = content[end + _FRAME.size : end + _FRAME.size + length]
        if len(data) != length or zlib.crc32(data) != checksum:
            break
        end, state = end + _FRAME.size + length, data
    if state is None:
        raise Internal(f"{path.name}: it holds no whole state")
    if end != len(content):
        os.truncate(path, end)
    return state


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_bytes(data)
        temporary.rename(path)
    except OSError:  # a full disk: leave no half of it behind
        temporary.unlink(missing_ok=True)
        raise
