"""This node's WireGuard keys: made here, kept in one file, never sent anywhere.

The managers name a generation; the node then has a key of it, and keeps that of the generation
before, so that packets flow while keys change. Invariant: the file is whole or absent, and only its
owner can read it. Refuses: a file that others can read, since a key in it is none.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
from typing_extensions import override

from shoal.errors import FailedPrecondition
from shoal.security.exchange import KEY_BYTES, new_private_key, public_key

FORMAT_VERSION: Final = 1
FILE_NAME: Final = "wireguard.json"
_OTHERS: Final = 0o077


class PrivateKeys(msgspec.Struct, frozen=True):
    """Keys by generation, at most two. They are in no repr."""

    by_generation: Mapping[int, bytes] = {}

    @override
    def __repr__(self) -> str:
        """Generations alone."""
        return f"PrivateKeys({sorted(self.by_generation)})"

    @property
    def public(self) -> dict[int, bytes]:
        """What others may know, in order."""
        return {
            generation: public_key(key) for generation, key in sorted(self.by_generation.items())
        }

    def moved_to(self, generation: int, fresh: bytes) -> PrivateKeys:
        """With a key of this generation, `fresh` unless there is one, and of the one before."""
        kept = {
            one: key
            for one, key in self.by_generation.items()
            if one in {generation - 1, generation}
        }
        return PrivateKeys({**kept, generation: kept.get(generation, fresh)})


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    keys: dict[int, bytes]


class KeyFile:
    """The file of the keys. Blocking."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME

    def load(self) -> PrivateKeys:
        """The keys; at the first time, one of generation 0 is made.

        Raises: FailedPrecondition (readable by others, damaged, of a newer version), OSError.
        """
        try:
            mode = self._path.stat().st_mode
            content = self._path.read_bytes()
        except FileNotFoundError:
            return self.move(PrivateKeys(), 0)
        if mode & _OTHERS:
            raise FailedPrecondition(
                f"{self._path}: others can read it: remove it, and the node makes new keys"
            )
        try:
            found = msgspec.json.decode(content, type=_File)
        except msgspec.MsgspecError as error:
            raise FailedPrecondition(
                f"{self._path}: {error}: remove it, and the node makes new keys"
            ) from error
        if found.version > FORMAT_VERSION or any(
            len(key) != KEY_BYTES for key in found.keys.values()
        ):
            raise FailedPrecondition(
                f"{self._path}: version {found.version} is not known here: remove it, and the node"
                " makes new keys"
            )
        return PrivateKeys(found.keys)

    def move(self, keys: PrivateKeys, generation: int) -> PrivateKeys:
        """The keys with one of this generation, durable when it returns. Raises: OSError."""
        moved = keys.moved_to(generation, new_private_key())
        if moved != keys:
            self._write(moved)
        return moved

    def remove(self) -> None:
        """The node leaves its cluster."""
        self._path.unlink(missing_ok=True)

    def _write(self, keys: PrivateKeys) -> None:
        temporary = self._path.with_suffix(".tmp")
        content = msgspec.json.encode(_File(FORMAT_VERSION, dict(keys.by_generation)))
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            temporary.unlink(missing_ok=True)
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.rename(self._path)
        except OSError:  # a full disk: leave no half of it behind
            temporary.unlink(missing_ok=True)
            raise
