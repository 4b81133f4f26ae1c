"""What an entry of a layer may be called and may ask for. Pure.

Every refusal is an InvalidArgument that names the entry and the rule it breaks. The rules are the
first of three fences; `apply` never writes through a link that leaves the root, and the process
that applies is chroot()ed besides.
"""

from __future__ import annotations

from shoal.errors import InvalidArgument
from worker.images.tarstream import Entry, Kind

WHITEOUT_PREFIX = ".wh."
OPAQUE_MARKER = ".wh..wh..opq"
_WHITEOUT_META = ".wh..wh."
_PATH_BYTES_MAX = 4095
_NAME_BYTES_MAX = 255
_MAJOR_MAX = (1 << 12) - 1
_MINOR_MAX = (1 << 20) - 1
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")
_KEPT_XATTRS = (
    "user.", "trusted.", "security.capability",
    "system.posix_acl_access", "system.posix_acl_default",
)  # fmt: skip


def clean_name(name: str, *, of: str = "entry") -> str:
    """The entry's path below the root: no leading or trailing slash; "" is the root itself.

    Raises InvalidArgument for absolute paths, `..`, NUL and what no file system can hold.
    """
    if name.startswith("/"):
        raise InvalidArgument(
            f"{of} {name!r} is an absolute path: names must be relative to the root file system"
        )
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidArgument(f"{of} {name!r} contains '..': it could leave the root file system")
    path = "/".join(parts)
    if "\0" in path:
        raise InvalidArgument(f"{of} {name!r} contains a NUL byte")
    if len(path.encode("utf-8", "surrogateescape")) > _PATH_BYTES_MAX:
        raise InvalidArgument(f"{of} {name[:80]!r}... is longer than {_PATH_BYTES_MAX} bytes")
    for part in parts:
        if len(part.encode("utf-8", "surrogateescape")) > _NAME_BYTES_MAX:
            raise InvalidArgument(
                f"{of} {name[:80]!r}: a file name is longer than {_NAME_BYTES_MAX} bytes"
            )
    return path


def whiteout_target(entry: Entry, path: str) -> str | None:
    """The name a whiteout hides; None when `path` is not a whiteout. "" is the opaque marker.

    Raises InvalidArgument for `.wh.` in front of nothing, `.` or `..`.
    """
    leaf = path.rpartition("/")[2]
    if not leaf.startswith(WHITEOUT_PREFIX):
        return None
    if leaf == OPAQUE_MARKER:
        return ""
    hidden = leaf.removeprefix(WHITEOUT_PREFIX)
    if hidden in ("", ".", ".."):
        raise InvalidArgument(f"entry {entry.name!r}: a whiteout must name what it hides")
    return hidden


def is_whiteout_bookkeeping(path: str) -> bool:
    """Whether any part is AUFS's own bookkeeping (such as `.wh..wh.plnk`): passed over."""
    return any(
        part.startswith(_WHITEOUT_META) and part != OPAQUE_MARKER for part in path.split("/")
    )


def check_kind(entry: Entry, *, devices_before: int, devices_max: int) -> None:
    """Refuse block devices, overlay's own whiteout devices, and more devices than the limit."""
    if entry.kind is Kind.BLOCK:
        raise InvalidArgument(
            f"entry {entry.name!r} is a block device: images may not carry disks;"
            " give the device to the container instead"
        )
    if entry.kind is not Kind.CHARACTER:
        return
    if entry.major == 0 and entry.minor == 0:
        raise InvalidArgument(
            f"entry {entry.name!r} is character device 0:0, overlayfs' own whiteout:"
            " deletions are spelled .wh.<name>"
        )
    if entry.major > _MAJOR_MAX or entry.minor > _MINOR_MAX:
        raise InvalidArgument(
            f"entry {entry.name!r}: device {entry.major}:{entry.minor} cannot exist on Linux"
        )
    if devices_before >= devices_max:
        raise InvalidArgument(
            f"entry {entry.name!r}: more than {devices_max} device nodes in one layer"
        )


def kept_xattrs(entry: Entry) -> dict[str, bytes]:
    """The extended attributes to set. Host policy labels (SELinux, IMA) are passed over.

    Raises InvalidArgument for overlayfs' own, which would redirect or hide other layers' files.
    """
    if not entry.xattrs:
        return entry.xattrs
    for key in entry.xattrs:
        if "\0" in key:
            raise InvalidArgument(f"entry {entry.name!r}: attribute {key!r} contains a NUL byte")
        if key.startswith(_OVERLAY_XATTRS):
            raise InvalidArgument(
                f"entry {entry.name!r} sets {key!r}: overlayfs' own attributes are refused"
            )
    return {key: value for key, value in entry.xattrs.items() if key.startswith(_KEPT_XATTRS)}
