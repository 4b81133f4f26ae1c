"""`--userns-remap`: whose subordinate ids containers get. Pure; the files are read by `read`.

Source: Docker's userns-remap and subuid(5). Refuses what dockerd would make by itself - the user
`dockremap`, ranges - with the commands that make it: nobody's /etc/passwd is changed unasked.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from shoal.errors import InvalidArgument
from worker.runtime.api import IdMap, IdRange

DEFAULT = "default"
DEFAULT_USER = "dockremap"
RANGES_MAX = 340
"""The kernel takes no more lines of a map."""
_FILE_BYTES_MAX = 4 << 20
_SYSCTL = "/proc/sys/user/max_user_namespaces"


class Accounts(NamedTuple):
    """The texts of the four files."""

    passwd: str
    group: str
    subuid: str
    subgid: str


def read(option: str) -> IdMap | None:
    """The mapping of an option; None for "". Blocking. Raises: InvalidArgument."""
    if not option:
        return None
    if _text(_SYSCTL, bytes_max=64).strip() in ("", "0"):
        raise InvalidArgument(
            f"--userns-remap {option}: this kernel makes no user namespaces: set the sysctl"
            " user.max_user_namespaces to 1 for each container, or more"
        )
    return mapping_of(option, Accounts(*(_text(f"/etc/{name}") for name in Accounts._fields)))


def mapping_of(option: str, accounts: Accounts) -> IdMap:
    """default, USER, USER:GROUP, UID or UID:GID to ranges. Raises: InvalidArgument."""
    user, separator, group = option.partition(":")
    if not user or (separator and not group):
        raise InvalidArgument(f"--userns-remap {option!r}: must be default, USER or USER:GROUP")
    if option == DEFAULT:
        user = DEFAULT_USER
    user_names = _names(accounts.passwd, user)
    if not user_names:
        raise InvalidArgument(
            f"--userns-remap {option}: there is no user {user}: make one with"
            f" `useradd --system --no-create-home {user}`"
        )
    group_names = _names(accounts.group, group or user)
    if group and not group_names:
        raise InvalidArgument(
            f"--userns-remap {option}: there is no group {group}: make one with"
            f" `groupadd --system {group}`"
        )
    return IdMap(
        uids=_ranges(accounts.subuid, user_names, "subuid"),
        gids=_ranges(accounts.subgid, group_names or user_names, "subgid"),
    )


def _names(text: str, wanted: str) -> tuple[str, ...]:
    """Name and id of an entry of passwd or group, found by either; () if there is none."""
    for line in text.splitlines():
        fields = line.split(":")
        if len(fields) > 2 and wanted in (fields[0], fields[2]):
            return fields[0], fields[2]
    return ()


def _ranges(text: str, names: tuple[str, ...], file: str) -> tuple[IdRange, ...]:
    """Every range of its owner, lowest first, mapped from 0 on. Raises: InvalidArgument."""
    found: list[tuple[int, int]] = []
    for number, line in enumerate(text.splitlines(), 1):
        owner, *numbers = line.strip().split(":")
        if owner not in names:
            continue
        if len(numbers) != 2 or not all(n.isascii() and n.isdigit() for n in numbers):
            raise InvalidArgument(f"/etc/{file}:{number}: {line!r} must be NAME:FIRST:COUNT")
        first, count = map(int, numbers)
        if first == 0 or count == 0 or first + count > 1 << 32:
            raise InvalidArgument(f"/etc/{file}:{number}: {line!r}: not a range above 0")
        found.append((first, count))
    if not found:
        raise InvalidArgument(
            f"--userns-remap: /etc/{file} has no range of {names[0]}: add a line such as"
            f" {names[0]}:100000:65536, of ids that nobody else has"
        )
    if len(found) > RANGES_MAX:
        raise InvalidArgument(f"/etc/{file}: more than {RANGES_MAX} ranges of {names[0]}")
    return _laid_out(sorted(found), file)


def _laid_out(found: list[tuple[int, int]], file: str) -> tuple[IdRange, ...]:
    ranges: list[IdRange] = []
    inside = end = 0
    for first, count in found:
        if first < end:
            raise InvalidArgument(f"/etc/{file}: {first}:{count} overlaps the range before it")
        ranges.append(IdRange(inside, first, count))
        inside, end = inside + count, first + count
    return tuple(ranges)


def _text(path: str, *, bytes_max: int = _FILE_BYTES_MAX) -> str:
    try:
        with Path(path).open("rb") as file:
            return file.read(bytes_max).decode("utf-8", "replace")
    except OSError:
        return ""
