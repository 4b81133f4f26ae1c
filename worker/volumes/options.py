"""Names of volumes and what their options mean. Pure.

Options are those of Docker's local driver: none, a plain directory; else `type`, `device` and `o`
as for mount(8). What is unknown is refused, not kept. Source: moby volume/local, mount flags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from shoal.errors import InvalidArgument
from shoal.model.row import Row

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
NAME_LETTERS_MAX = 255
_KNOWN = frozenset(("type", "device", "o", "size"))
_FLAGS = {
    "ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "mand": 64, "dirsync": 128,
    "noatime": 1024, "nodiratime": 2048, "bind": 4096, "rbind": 4096 | 16384,
    "relatime": 1 << 21, "strictatime": 1 << 24,
}  # fmt: skip
_CLEARED = {
    "rw": 1, "suid": 2, "dev": 4, "exec": 8, "async": 16, "nomand": 64, "atime": 1024,
    "diratime": 2048, "norelatime": 1 << 21, "nostrictatime": 1 << 24, "defaults": 0,
}  # fmt: skip
_PROPAGATION = {
    "unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20,
    "runbindable": 1 << 17 | 16384, "rprivate": 1 << 18 | 16384, "rslave": 1 << 19 | 16384,
    "rshared": 1 << 20 | 16384,
}  # fmt: skip


class MountPlan(Row, frozen=True):
    """What mount(2) is to be given. `address`: a host name in `data` that must become a number."""

    kind: str
    device: str
    flags: int
    data: str = ""
    propagation: int = 0
    address: str = ""

    def text(self, target: str) -> str:
        """As Docker words a mount that failed."""
        flags = f", flags: 0x{self.flags:x}" if self.flags else ""
        data = f", data: {self.data}" if self.data else ""
        return f"mount {self.device}:{target}{flags}{data}"


def check_name(name: str) -> str:
    """Raises: InvalidArgument."""
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f'create {name}: "{name}" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory,'
            " use absolute path"
        )
    if len(name) > NAME_LETTERS_MAX:
        raise InvalidArgument(
            f"create {name}: a volume's name has at most {NAME_LETTERS_MAX} letters"
        )
    return name


def mount_plan(name: str, options: Mapping[str, str]) -> MountPlan | None:
    """How the volume is mounted; None for a plain directory. Raises: InvalidArgument."""
    for option in options:
        if option not in _KNOWN:
            raise InvalidArgument(f'create {name}: invalid option: "{option}"')
    if "size" in options:
        raise InvalidArgument(f"create {name}: quota size requested but no quota support")
    if not options:
        return None
    for option in ("type", "device"):
        if not options.get(option):
            raise InvalidArgument(f'create {name}: missing required option: "{option}"')
    return _plan(name, options["type"], options["device"], options.get("o", ""))


def _plan(name: str, kind: str, device: str, words: str) -> MountPlan:
    flags = propagation = 0
    data, address = [], ""
    for word in filter(None, words.split(",")):
        if word == "remount":
            raise InvalidArgument(f'create {name}: o: "remount" is not possible for a volume')
        if word in _PROPAGATION:
            propagation |= _PROPAGATION[word]
        elif word in _FLAGS:
            flags |= _FLAGS[word]
        elif word in _CLEARED:
            flags &= ~_CLEARED[word]
        else:
            data.append(word)
            if kind.startswith(("nfs", "cifs")) and word.startswith("addr="):
                address = word.removeprefix("addr=")
    if flags & _FLAGS["bind"] and not device.startswith("/"):
        raise InvalidArgument(f"create {name}: device: a bind needs an absolute path: {device}")
    return MountPlan(kind, device, flags, ",".join(data), propagation, address)


def check_subpath(subpath: str) -> str:
    """A path within a volume, by its words alone. Raises: InvalidArgument."""
    parts = subpath.split("/")
    depth = 0
    for part in parts:
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            break
    if subpath.startswith("/") or depth < 0 or "\0" in subpath:
        raise InvalidArgument(
            'invalid mount config for type "volume": subpath must be a relative path within the'
            " volume"
        )
    return subpath
