"""API versions: which we speak, and the prefix of a path. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from typing_extensions import override

from shoal.errors import InvalidArgument

_PREFIX = re.compile(r"/v([0-9]{1,4})\.([0-9]{1,4})(/.*)")


class ApiVersion(NamedTuple):
    """A version; compares by number, not by text."""

    major: int
    minor: int

    @override
    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


NEWEST = ApiVersion(1, 45)
OLDEST = ApiVersion(1, 24)


class TooOld(InvalidArgument):
    """Docker answers this one error as plain text."""


def strip_version(path: str) -> str:
    """A path without its version prefix, whatever version that is."""
    found = _PREFIX.fullmatch(path)
    return path if found is None else found[3]


def split_version(path: str) -> tuple[ApiVersion, str]:
    """Version and rest of a path; without a prefix: the newest.

    Raises: InvalidArgument, TooOld, in Docker's words.
    """
    found = _PREFIX.fullmatch(path)
    if found is None:
        return NEWEST, path
    version = ApiVersion(int(found[1]), int(found[2]))
    if version > NEWEST:
        raise InvalidArgument(
            f"client version {version} is too new. Maximum supported API version is {NEWEST}"
        )
    if version < OLDEST:
        raise TooOld(
            f"client version {version} is too old. Minimum supported API version is {OLDEST},"
            " please upgrade your client to a newer version"
        )
    return version, found[3]
