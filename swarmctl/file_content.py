"""The content of a secret or config, from a file or from standard input."""

from __future__ import annotations

import sys
from typing import BinaryIO

from shoal.errors import InvalidArgument
from shoal.model.files import FileRow, size_max


def read_content(kind: type[FileRow], path: str) -> bytes:
    """The bytes of a file, `-`: of standard input; no more than there may be are ever read.

    Raises: InvalidArgument.
    """
    if path == "-":
        return _bounded(kind, sys.stdin.buffer)
    try:
        with open(path, "rb") as file:
            return _bounded(kind, file)
    except OSError as error:
        raise InvalidArgument(f"{path}: {error.strerror or error}") from error


def _bounded(kind: type[FileRow], file: BinaryIO) -> bytes:
    limit, noun = size_max(kind), kind.__name__.lower()
    data = file.read(limit)
    if not 0 < len(data) < limit:
        raise InvalidArgument(f"{noun} data must be larger than 0 and less than {limit}")
    return data
