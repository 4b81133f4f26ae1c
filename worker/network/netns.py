"""Network namespaces of tasks: made in a thread, kept alive by a bind mount, dropped.

`fresh` moves only the calling thread into a new namespace and always back; if it cannot go back the
thread is unusable and the process must end (InvariantViolation). Invariant: the directory of the
mounts is a shared mount of its own, so that removing one reaches every mount namespace that copied
it; and a tmpfs, since making a file on a disk may take longer than making the namespace. Refuses:
joining namespaces by pid.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from shoal.errors import violated
from worker.network.owners import Owner, make

CLONE_NEWNET = 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_BIND, _MS_REC, _MS_SHARED = 4096, 16384, 1 << 20
_MNT_DETACH = 2
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def fresh(path: Path, owner: Owner | None = None) -> Iterator[int]:
    """Make a namespace, mount it at `path`, and run the body inside it; yields its descriptor.

    The descriptor is closed when the body ends. On an error in the body the namespace is dropped.
    owner: who owns it, if it is not the node's root. Raises: OSError.
    """
    if owner is not None:
        with _fresh_of(path, owner) as inside:
            yield inside
        return
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "unshare")
        try:
            path.touch(mode=0o444)
            _mount(_OWN, str(path), _MS_BIND)
            inside = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield inside
            finally:
                os.close(inside)
        except BaseException:
            drop(path)
            raise
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:
                violated("a thread is stuck in a task's namespace", errno=ctypes.get_errno())
    finally:
        os.close(home)


@contextlib.contextmanager
def _fresh_of(path: Path, owner: Owner) -> Iterator[int]:
    try:
        path.touch(mode=0o444)
        make(owner, lambda place: _mount(place, str(path), _MS_BIND))
        with entered(path):
            inside = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                yield inside
            finally:
                os.close(inside)
    except BaseException:
        drop(path)
        raise


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """Run the body with the calling thread inside the namespace mounted at `path`."""
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        inside = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(inside, CLONE_NEWNET), f"setns {path}")
        finally:
            os.close(inside)
        try:
            yield
        finally:
            if _libc.setns(home, CLONE_NEWNET) != 0:
                violated("a thread is stuck in a task's namespace", errno=ctypes.get_errno())
    finally:
        os.close(home)


def drop(path: Path) -> None:
    """Unmount and remove `path`; the namespace ends with its last process. Idempotent."""
    if is_mounted(path):
        _check(_libc.umount2(os.fsencode(path), _MNT_DETACH), f"umount {path}")
    path.unlink(missing_ok=True)


def is_mounted(path: Path) -> bool:
    """Whether a namespace is mounted at `path`."""
    try:
        return path.stat().st_dev == os.stat(_OWN).st_dev
    except FileNotFoundError:
        return False


def share_directory(directory: Path) -> None:
    """Make `directory` a shared tmpfs of its own; nothing to do if it is a mount already."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if not _is_mount_point(directory):
        flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
        _mount("shoal-netns", str(directory), flags, kind="tmpfs", options="mode=0755,size=64k")
        _mount("none", str(directory), _MS_SHARED | _MS_REC)


def unshare_directory(directory: Path) -> None:
    """Drop every namespace in `directory`, its mount, and itself."""
    if not directory.exists():
        return
    for path in directory.iterdir():
        drop(path)
    while _is_mount_point(directory):
        _check(_libc.umount2(os.fsencode(directory), _MNT_DETACH), f"umount {directory}")
    directory.rmdir()


def _is_mount_point(directory: Path) -> bool:
    wanted = os.fsencode(directory.resolve())
    with open("/proc/thread-self/mountinfo", "rb") as mounts:
        return any(line.split(b" ", 5)[4] == wanted for line in mounts)


def _mount(source: str, target: str, flags: int, *, kind: str = "", options: str = "") -> None:
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        options.encode() or None,
    )
    _check(result, f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
