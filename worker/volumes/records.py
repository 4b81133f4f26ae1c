"""The directories of volumes and the record in each: `<name>/{volume.json,_data}`; format 1.

A volume is made under another name and renamed into place, and renamed away before its content is
deleted: after a crash it is there, whole, or it is not there. A directory whose record cannot be
read is somebody's data: it is left alone, its name stays taken, and it is reported. Blocking.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from shoal.errors import FailedPrecondition
from shoal.model.row import Row
from worker.volumes import kernel
from worker.volumes.api import Volume

FORMAT = 1
RECORD_FILE = "volume.json"
DATA = "_data"
_MAKING, _REMOVING = ".making-", ".removing-"

_log = structlog.get_logger()


class _Record(Row, frozen=True):
    name: str
    created_at_ns: int
    driver: str
    labels: Mapping[str, str]
    options: Mapping[str, str]
    anonymous: bool
    format: int = FORMAT


class VolumeFiles:
    """The directory of all volumes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self) -> tuple[dict[str, Volume], frozenset[str]]:
        """Every volume by name, and names that are taken by what cannot be read.

        Clears away what a crash left half-made or half-removed. Raises: OSError.
        """
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        found, damaged = {}, set()
        for entry in sorted(self._root.iterdir()):
            if entry.name.startswith((_MAKING, _REMOVING)):
                self.discard(entry)
                continue
            try:
                found[entry.name] = self._load(entry)
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                _log.error("volume.record_damaged", path=str(entry), reason=str(error))
                damaged.add(entry.name)
        return found, frozenset(damaged)

    def data(self, name: str) -> str:
        """Where its content is."""
        return str(self._root / name / DATA)

    def directory(self, name: str) -> str:
        """What holds record and content."""
        return str(self._root / name)

    def make(self, volume: Volume) -> None:
        """Make it, durably. Raises: OSError; then nothing is left."""
        fresh = self._root / f"{_MAKING}{volume.name}"
        try:
            shutil.rmtree(fresh, ignore_errors=True)
            (fresh / DATA).mkdir(parents=True, mode=0o755)
            with (fresh / RECORD_FILE).open("wb") as file:
                file.write(msgspec.json.encode(_record_of(volume)))
                file.flush()
                os.fsync(file.fileno())
            _sync(fresh)
            fresh.rename(self._root / volume.name)
            _sync(self._root)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            raise

    def take_away(self, name: str) -> Path:
        """Remove the volume; what the result leads to is to be discarded. Raises: OSError."""
        gone = self._root / f"{_REMOVING}{name}.{os.urandom(4).hex()}"
        (self._root / name).rename(gone)
        _sync(self._root)
        return gone

    def discard(self, gone: Path) -> None:
        """Delete content. What cannot be deleted is logged and tried again at the next start.

        Refuses to go where something is mounted: that is not the volume's own content.
        """
        try:
            check_unmounted(gone)
            shutil.rmtree(gone)
        except (OSError, FailedPrecondition) as error:
            _log.error("volume.content_kept", path=str(gone), reason=str(error))

    def _load(self, directory: Path) -> Volume:
        data = (directory / RECORD_FILE).read_bytes()
        head = msgspec.json.decode(data, type=_Head)
        if head.format != FORMAT:
            raise ValueError(f"its format is {head.format}, this version reads {FORMAT}")
        record = msgspec.json.decode(data, type=_Record)
        if record.name != directory.name or not (directory / DATA).is_dir():
            raise ValueError("it is not this volume's record, or the volume has no content")
        return Volume(
            name=record.name,
            mountpoint=self.data(record.name),
            created_at_ns=record.created_at_ns,
            driver=record.driver,
            labels=dict(record.labels),
            options=dict(record.options),
            anonymous=record.anonymous,
        )


class _Head(Row, frozen=True):
    format: int


def check_unmounted(directory: Path) -> None:
    """Raises: FailedPrecondition: something is mounted at or below the directory."""
    place = os.path.realpath(directory)
    for point in kernel.mount_points():
        if point == place or point.startswith(f"{place}/"):
            raise FailedPrecondition(f"something is mounted at {point}: unmount it first")


def _record_of(volume: Volume) -> _Record:
    return _Record(
        name=volume.name,
        created_at_ns=volume.created_at_ns,
        driver=volume.driver,
        labels=volume.labels,
        options=volume.options,
        anonymous=volume.anonymous,
    )


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
