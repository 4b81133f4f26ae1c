"""Compose files, and what they name, from the disk of the caller; everything is bounded."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from shoal.errors import InvalidArgument, NotFound
from swarmctl.compose.project import Project, Source, load_project
from swarmctl.compose.tree import BYTES_MAX

CONTENT_BYTES_MAX = 1_024_000
STDIN = "-"


class Disk:
    """Implements `swarmctl.compose.project.Surroundings`."""

    @property
    def environ(self) -> Mapping[str, str]:
        """The caller's."""
        return os.environ

    def read_text(self, path: str) -> str:
        """A file as text. Raises: NotFound, InvalidArgument."""
        return _text(self.read_bytes(path), path)

    def read_bytes(self, path: str) -> bytes:
        """A file. Raises: NotFound, InvalidArgument."""
        try:
            with open(path, "rb") as file:
                return _bounded(file, path, CONTENT_BYTES_MAX)
        except FileNotFoundError as error:
            raise NotFound(f"{path}: there is no such file") from error
        except OSError as error:
            raise InvalidArgument(f"{path}: {error.strerror or error}") from error


def read_project(paths: Sequence[str], *, variables: bool = True) -> Project:
    """The project of these Compose files, `-`: standard input.

    Relative paths in all of them start from the directory of the first, as Docker has it.
    """
    if not paths:
        raise InvalidArgument("specify a Compose file (with --compose-file)")
    first = paths[0]
    directory = Path.cwd() if first == STDIN else Path(first).absolute().parent
    sources = [Source(_name(path), _read(path), str(directory)) for path in paths]
    return load_project(sources, Disk(), variables=variables)


def _name(path: str) -> str:
    return "(stdin)" if path == STDIN else path


def _read(path: str) -> str:
    if path == STDIN:
        return _text(_bounded(sys.stdin.buffer, _name(path), BYTES_MAX), _name(path))
    try:
        with open(path, "rb") as file:
            return _text(_bounded(file, path, BYTES_MAX), path)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or error}") from error


def _bounded(file: IO[bytes], name: str, limit: int) -> bytes:
    data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidArgument(f"{name}: more than {limit} bytes")
    return data


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{name}: is no text: {error.reason}") from error
