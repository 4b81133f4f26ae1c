"""Who a container runs as: Docker's `user[:group]` against the image's passwd and group files.

Pure text in, ids out. The invariant: a name that is not in the files is refused, never mapped to
root; a bare number is accepted without an entry, as in Docker.
"""

from __future__ import annotations

ID_MAX = 2**31 - 1


class Account:
    """The ids a process gets, and the home directory for its HOME."""

    __slots__ = ("gid", "groups", "home", "uid")

    def __init__(self, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def find_account(user: str, extra_groups: list[str], *, passwd: str, group: str) -> Account:
    """Resolve `user` ("", "name", "uid", each with ":group" or ":gid").

    Groups follow Docker: with an explicit group the process gets that one only, otherwise every
    group that lists the user. Raises: ValueError naming what could not be found.
    """
    user_part, _, group_part = user.partition(":")
    users = _records(passwd, 7)
    groups = _records(group, 4)
    name, uid, gid, home = _find_user(user_part or "0", users)
    supplementary: list[int] = []
    if group_part:
        gid = _find_group(group_part, groups)
    elif name:
        supplementary = [_number(r[2]) for r in groups if name in r[3].split(",")]
    supplementary += [_find_group(entry, groups) for entry in extra_groups]
    return Account(uid, gid, list(dict.fromkeys([gid, *supplementary])), home)


def _records(text: str, width: int) -> list[list[str]]:
    records = []
    for line in text.splitlines():
        fields = line.strip().split(":")
        if not line.startswith("#") and len(fields) >= width and fields[2].isdecimal():
            records.append(fields)
    return records


def _find_user(wanted: str, users: list[list[str]]) -> tuple[str, int, int, str]:
    for record in users:
        if record[0] == wanted or record[2] == wanted:
            return record[0], _number(record[2]), _number(record[3]), record[5] or "/"
    if not wanted.isdecimal():
        raise ValueError(f"unable to find user {wanted}: no matching entries in passwd file")
    return "", _number(wanted), 0, "/"


def _find_group(wanted: str, groups: list[list[str]]) -> int:
    for record in groups:
        if wanted in (record[0], record[2]):
            return _number(record[2])
    if not wanted.isdecimal():
        raise ValueError(f"unable to find group {wanted}: no matching entries in group file")
    return _number(wanted)


def _number(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= ID_MAX:
        raise ValueError(f"uids and gids must be in range 0-{ID_MAX}, got {text}")
    return number
