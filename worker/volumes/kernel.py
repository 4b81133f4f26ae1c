"""The system calls of volumes that Python has no function for. Blocking; called in threads.

Each raises `OSError` with the path it was about.
"""

from __future__ import annotations

import ctypes
import os

MS_REMOUNT = 32
MS_BIND = 4096
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
_MNT_DETACH = 2
_RESOLVE_BENEATH = 0x08
_RENAME_NOREPLACE = 1
_SYS_OPENAT2 = 437  # the same on every architecture

_libc = ctypes.CDLL(None, use_errno=True)
_libc.renameat2.argtypes = (
    ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint,
)  # fmt: skip
_libc.mount.argtypes = (
    ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p,
)  # fmt: skip
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.syscall.restype = ctypes.c_long


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """Put a file system in place. All as for the system call."""
    done = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind.encode(), flags, os.fsencode(data) or None
    )
    _check(done, target)


def umount(target: str) -> None:
    """Unmount; fails while somebody uses the mount itself."""
    _check(_libc.umount2(os.fsencode(target), 0), target)


def detach(target: str) -> None:
    """Take a mount away; who uses it keeps it until they have done."""
    _check(_libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def open_beneath(directory: int, path: str) -> int:
    """An O_PATH descriptor of `path`; fails with EXDEV where a link or `..` leads outside."""
    how = _OpenHow(flags=os.O_PATH | os.O_CLOEXEC, mode=0, resolve=_RESOLVE_BENEATH)
    fd = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(directory), os.fsencode(path),
        ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
    )  # fmt: skip
    return _check(fd, path)


def rename_new(name: str, source: int, target: int) -> None:
    """Move an entry from one directory to another, which must not have one of that name."""
    encoded = os.fsencode(name)
    _check(_libc.renameat2(source, encoded, target, encoded, _RENAME_NOREPLACE), name)


def mount_points() -> set[str]:
    """Where something is mounted, in this process' view."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        return {_unescaped(line.split()[4]) for line in file}


def _unescaped(path: str) -> str:
    for code, letter in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        path = path.replace(code, letter)
    return path


def _check(result: int, path: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result
