"""What the engine remembers of each container, and the files it is kept in; format 1.

A record holds what was asked for and what cannot be learnt from the runtime: names, restarts, the
reason of a start that failed. It is written whole and synced before it is renamed into place, so a
crash leaves the one before. A file that cannot be read is kept and reported: its container is left
alone, as somebody's data is in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from engine.containers.requests import Config, EndpointConfig, HostConfig
from engine.http.errors import told_by_the_disk
from shoal.model.row import Row
from worker.network.local.api import Sandbox

FORMAT = 1
_NAME = re.compile(rb'"name"\s*:\s*"([a-zA-Z0-9_.-]+)"')

_log = structlog.get_logger()


class MountPoint(Row, frozen=True):
    """One mount of a container, as decided when it was made.

    kind: bind, volume or tmpfs. source: host path of a bind. name: of a volume. mode: as asked for,
    to be shown. propagation "": rprivate. anonymous: `rm -v` takes the volume along.
    """

    kind: str
    target: str
    source: str = ""
    name: str = ""
    driver: str = ""
    mode: str = ""
    read_only: bool = False
    propagation: str = ""
    recursive: bool = True
    recursive_read_only: bool = False
    subpath: str = ""
    copy: bool = True
    create_source: bool = False
    anonymous: bool = False
    driver_options: Mapping[str, str] = {}
    volume_labels: Mapping[str, str] = {}
    tmpfs_size_bytes: int = 0
    tmpfs_mode: int = 0
    tmpfs_options: tuple[str, ...] = ()


class Record(Row, frozen=True):
    """One container."""

    id: str
    name: str
    created_at_ns: int
    image_id: str
    image: str
    path: str
    args: tuple[str, ...]
    config: Config
    host: HostConfig
    networks: Mapping[str, EndpointConfig] = {}
    """Wishes by network name; the first is the one the default route goes through."""
    mounts: tuple[MountPoint, ...] = ()
    sandbox: Sandbox | None = None
    """What the networks gave at the last start; None while it does not run."""
    restart_count: int = 0
    manually_stopped: bool = False
    started: bool = False
    """Whether its program has ever run."""
    filled: bool = False
    """Whether its volumes have been given what the image has at their places."""
    failure: str = ""
    """Why the last start failed; `failure_code` is its exit code then."""
    failure_code: int = 0
    settled_ns: int = 0
    """Start of the last run whose end has been dealt with."""
    removing: bool = False
    removing_volumes: bool = False
    dead: bool = False
    """The runtime lost it: it can only be removed."""
    format: int = FORMAT


class RecordFiles:
    """The directory of records. Blocking; called in threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self) -> None:
        """Make the directory; remove what a crash left half-written. Raises: OSError."""
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in self._directory.glob("*.tmp"):
            path.unlink(missing_ok=True)

    def save(self, record: Record, *, durable: bool = True) -> None:
        """Replace the record. Raises: ResourceExhausted, OSError; then the one before stays.

        durable: it must outlive a power cut; what a start or an end notes need not.
        """
        path = self._path(record.id)
        temporary = path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(msgspec.json.encode(record))
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.rename(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise told_by_the_disk(error) or error from None

    def remove(self, container: str) -> None:
        """Forget a record. Raises: OSError."""
        self._path(container).unlink(missing_ok=True)

    def load(self) -> tuple[list[Record], dict[str, frozenset[str]]]:
        """Every record; and by id those that cannot be read, with the names that stand in them.

        Among the names are those of its volumes: they must be kept for whoever mends the record.
        """
        found, damaged = [], {}
        for path in sorted(self._directory.glob("*.json")):
            try:
                found.append(_decode(path))
            except (OSError, msgspec.MsgspecError, ValueError) as error:
                _log.error("container.record_damaged", path=str(path), reason=str(error))
                damaged[path.stem] = _names_in(path)
        return found, damaged

    def _path(self, container: str) -> Path:
        return self._directory / f"{container}.json"


def _decode(path: Path) -> Record:
    data = path.read_bytes()
    head = msgspec.json.decode(data, type=_Head)
    if head.format != FORMAT:
        raise ValueError(f"its format is {head.format}, this version reads {FORMAT}")
    record = msgspec.json.decode(data, type=Record)
    if record.id != path.stem:
        raise ValueError("it holds another container's record")
    return record


def _names_in(path: Path) -> frozenset[str]:
    try:
        return frozenset(name.decode() for name in _NAME.findall(path.read_bytes()))
    except OSError:
        return frozenset()


class _Head(Row, frozen=True):
    format: int
