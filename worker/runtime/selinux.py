"""SELinux labels of containers: what was asked for, and categories nobody else has. Pure.

A label is `user:role:type:level`; a container's processes have one, its files another, and both
carry the container's pair of categories, so that containers of one type cannot touch each other.
Invariant: no two containers that asked for no level have the same pair. Source of the options and
of what they default to: Docker's `--security-opt label=...`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence, Set

import msgspec
from typing_extensions import override

from shoal.errors import InvalidArgument, ResourceExhausted

CATEGORIES = 1024
PRIVILEGED_LEVEL = "s0:c1022,c1023"
"""Of the files of containers whose processes have no label of their own."""
SHARED_LEVEL = "s0"
"""Of what containers share: every container's level dominates it."""
_PARTS = ("user", "role", "type", "level")
_WORD = re.compile(r"[A-Za-z0-9_.]+")
_LEVEL = re.compile(r"s\d+(-s\d+)?(:c\d+([.,]c\d+)*)?(-s\d+(:c\d+([.,]c\d+)*)?)?")
_ORDINARY = CATEGORIES - 2  # the last two are the privileged level's
PAIRS = _ORDINARY * (_ORDINARY - 1) // 2


class Label(msgspec.Struct, frozen=True):
    """One label, in its parts."""

    user: str
    role: str
    type: str
    level: str

    @override
    def __str__(self) -> str:
        return f"{self.user}:{self.role}:{self.type}:{self.level}"

    def at(self, level: str) -> Label:
        """The same with another level."""
        return Label(self.user, self.role, self.type, level)


class Labels(msgspec.Struct, frozen=True):
    """Of a container: of its processes ("" is the runtime's own), and of its files."""

    process: str = ""
    mount: str = ""


class Wish(msgspec.Struct, frozen=True):
    """What `--security-opt label=...` says; "" is the policy's default."""

    disable: bool = False
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""
    filetype: str = ""


class Policy(msgspec.Struct, frozen=True):
    """What the node's policy gives containers by default: of processes, and of files."""

    process: Label
    file: Label


def parse(text: str) -> Label:
    """Raises: InvalidArgument."""
    parts = text.split(":", 3)
    if len(parts) != len(_PARTS) or not all(parts):
        raise InvalidArgument(f"SELinux label {text!r}: must be user:role:type:level")
    return Label(*parts)


def policy_of(lxc_contexts: str) -> Policy:
    """From the policy's file for containers. Raises: InvalidArgument when a label is missing."""
    found = dict(re.findall(r'^\s*(\w+)\s*=\s*"?([^"\s]+)"?', lxc_contexts, re.MULTILINE))
    for name in ("process", "file"):
        if name not in found:
            raise InvalidArgument(f"lxc_contexts: the policy has no label `{name}` for containers")
    return Policy(parse(found["process"]), parse(found["file"]))


def wish_of(options: Sequence[str]) -> Wish:
    """`type:container_t`, `level:s0:c1,c2`, `disable`. Raises: InvalidArgument."""
    found: dict[str, str] = {}
    for option in options:
        name, _, value = option.partition(":")
        if option == "disable":
            return Wish(disable=True)
        pattern = _LEVEL if name == "level" else _WORD
        if name not in (*_PARTS, "filetype") or not pattern.fullmatch(value):
            raise InvalidArgument(
                f"selinux_labels: bad label option {option!r}, valid options are 'disable' or "
                "'user, role, level, type, filetype' followed by ':' and a value"
            )
        found[name] = value
    return Wish(False, *(found.get(name, "") for name in (*_PARTS, "filetype")))


def labels_of(wish: Wish, policy: Policy, level: str) -> Labels:
    """level: the container's own, where none was asked for."""
    if wish.disable:
        return Labels(mount=str(policy.file.at(PRIVILEGED_LEVEL)))
    process = Label(
        wish.user or policy.process.user,
        wish.role or policy.process.role,
        wish.type or policy.process.type,
        wish.level or level,
    )
    file = Label(process.user, policy.file.role, wish.filetype or policy.file.type, process.level)
    return Labels(str(process), str(file))


def like(donor: Labels) -> Wish:
    """To be labelled as a container whose processes or memory are shared."""
    if not donor.process:
        return Wish(disable=True)
    label, file = parse(donor.process), parse(donor.mount)
    return Wish(False, label.user, label.role, label.type, label.level, file.type)


def free_level(taken: Set[str], start: int) -> str:
    """A level with two categories that is not among `taken`. start: any number, where to begin.

    Raises: ResourceExhausted when all are taken.
    """
    for step in range(min(PAIRS, len(taken) + 1)):
        level = _level((start + step) % PAIRS)
        if level not in taken:
            return level
    raise ResourceExhausted("SELinux: every pair of categories is taken: remove containers")


def _level(number: int) -> str:
    """The pair of categories with this number: (0,1), (0,2), (1,2), (0,3), ..."""
    high = int(((8 * number + 1) ** 0.5 + 1) / 2)
    while high * (high - 1) // 2 > number:
        high -= 1
    while (high + 1) * high // 2 <= number:
        high += 1
    return f"s0:c{number - high * (high - 1) // 2},c{high}"
