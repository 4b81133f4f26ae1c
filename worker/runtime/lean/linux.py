"""Linux system calls the executor needs and Python 3.11 does not wrap.

Every function raises OSError with the failing path or step as its filename. `PyDLL` keeps the GIL
through each call: the processes that use this module have one thread, and a clone made while
another thread could own the GIL would hang its child.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PIDFD = 0x00001000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_REMOUNT = 32
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2

MOUNT_ATTR_RDONLY = 1
MOUNT_ATTR_NOSUID = 2
MOUNT_ATTR_NODEV = 4
MOUNT_ATTR_NOEXEC = 8
MOUNT_ATTR_IDMAP = 0x00100000

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
MOVE_MOUNT_F_EMPTY_PATH = 4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
RESOLVE_IN_ROOT = 0x10

PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
SECBIT_NO_SETUID_FIXUP = 4
NS_GET_USERNS = 0xB701
PROC_SUPER_MAGIC = 0x9FA0

O_PATH = os.O_PATH
SIGCHLD = 17
CAPABILITY_VERSION_3 = 0x20080522

# Numbers from clone3 (435) on are the same on every architecture; these are not.
_OLD_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "keyctl": 250, "seccomp": 317, "bpf": 321},
    "aarch64": {"pivot_root": 41, "capset": 91, "keyctl": 219, "seccomp": 277, "bpf": 280},
}
ARCH = os.uname().machine
if ARCH not in _OLD_NUMBERS:
    raise RuntimeError(f"the native executor knows x86_64 and aarch64, not {ARCH}")
_NR = _OLD_NUMBERS[ARCH] | {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}

_libc = ctypes.PyDLL(None, use_errno=True)
_LONG, _INT, _STR, _PTR = ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
_ULONG, _SIZE = ctypes.c_ulong, ctypes.c_size_t


def _call(name: str, *argtypes: type[ctypes._SimpleCData[Any]]) -> ctypes._NamedFuncPointer:
    function = _libc[name]
    function.argtypes = argtypes
    function.restype = _INT
    return function


def _syscall(*argtypes: type[ctypes._SimpleCData[Any]]) -> ctypes._NamedFuncPointer:
    function = _libc["syscall"]
    function.argtypes = (_LONG, *argtypes)
    function.restype = _LONG
    return function


_mount = _call("mount", _STR, _STR, _STR, _ULONG, _STR)
_umount2 = _call("umount2", _STR, _INT)
_unshare = _call("unshare", _INT)
_setns = _call("setns", _INT, _INT)
_sethostname = _call("sethostname", _STR, _SIZE)
_setdomainname = _call("setdomainname", _STR, _SIZE)
_prctl = _call("prctl", _INT, _ULONG, _ULONG, _ULONG, _ULONG)
_fstatfs = _call("fstatfs", _INT, _PTR)
_setfsuid = _call("setfsuid", _INT)
_setfsgid = _call("setfsgid", _INT)
_clone3 = _syscall(_PTR, _SIZE)
_openat2 = _syscall(_INT, _STR, _PTR, _SIZE)
_open_tree = _syscall(_INT, _STR, _INT)
_move_mount = _syscall(_INT, _STR, _INT, _STR, _INT)
_mount_setattr = _syscall(_INT, _STR, _INT, _PTR, _SIZE)
_fsopen = _syscall(_STR, _INT)
_fsconfig = _syscall(_INT, _INT, _STR, _STR, _INT)
_fsmount = _syscall(_INT, _INT, _INT)
_pivot_root = _syscall(_STR, _STR)
_close_range = _syscall(_INT, _INT, _INT)
_capset = _syscall(_PTR, _PTR)
_keyctl = _syscall(_INT, _LONG)
_seccomp = _syscall(_INT, _INT, _PTR)
_bpf = _syscall(_INT, _PTR, _INT)
_ioctl = _libc["ioctl"]


class _CloneArgs(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags", "pidfd", "child_tid", "parent_tid", "exit_signal", "stack", "stack_size",
            "tls", "set_tid", "set_tid_size", "cgroup",
        )
    ]  # fmt: skip


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


class _MountAttr(ctypes.Structure):
    _fields_ = [
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    ]


class _SockFprog(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def _checked(result: int, what: str) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), what)
    return result


def clone(flags: int, *, cgroup_fd: int = -1) -> tuple[int, int]:
    """Fork into new namespaces; returns (0, -1) in the child, (pid, pidfd) in the parent.

    With `cgroup_fd` >= 0 the child is born in that cgroup v2 directory, which spares the RCU wait
    of a later move. Only for single-threaded processes: no at-fork hook runs.
    """
    pidfd = ctypes.c_int(-1)
    exit_signal = 0 if flags & CLONE_PARENT else SIGCHLD  # a sibling tells what its parent told
    arguments = _CloneArgs(flags=flags | CLONE_PIDFD, exit_signal=exit_signal)
    arguments.pidfd = ctypes.addressof(pidfd)
    if cgroup_fd >= 0:
        arguments.flags |= CLONE_INTO_CGROUP
        arguments.cgroup = cgroup_fd
    pid = _checked(
        _clone3(_NR["clone3"], ctypes.addressof(arguments), ctypes.sizeof(arguments)), "clone3"
    )
    return (0, -1) if pid == 0 else (pid, pidfd.value)


def kill_and_reap(pidfd: int) -> None:
    """End a child that must not run and take its remains away."""
    _signal.pidfd_send_signal(pidfd, _signal.SIGKILL)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)


def clone_beside(pidfd: int, own_pids: int, flags: int, *, cgroup_fd: int = -1) -> tuple[int, int]:
    """`clone` into the pid namespace of another process. own_pids: ours, to come back to."""
    setns(pidfd, CLONE_NEWPID)
    try:
        pid, child_pidfd = clone(flags, cgroup_fd=cgroup_fd)
    except OSError:
        setns(own_pids, CLONE_NEWPID)
        raise
    if pid:
        setns(own_pids, CLONE_NEWPID)
    return pid, child_pidfd


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system. Refuses options the kernel would cut at 4095 bytes without a word."""
    encoded = os.fsencode(options)
    if len(encoded) > 4094:
        raise OSError(7, "mount options are longer than the kernel reads", target)
    _checked(
        _mount(os.fsencode(source), os.fsencode(target), kind.encode(), flags, encoded or None),
        f"mount {kind or 'bind'} on {target}",
    )


def umount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2), lazily by default."""
    _checked(_umount2(os.fsencode(target), flags), f"umount {target}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones."""
    _checked(_unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """Join the namespace behind `fd`."""
    _checked(_setns(fd, kind), "setns")


def sethostname(name: str) -> None:
    """Set the host name of the current UTS namespace."""
    encoded = name.encode()
    _checked(_sethostname(encoded, len(encoded)), f"sethostname {name}")


def setdomainname(name: str) -> None:
    """Set the NIS domain name of the current UTS namespace."""
    encoded = name.encode()
    _checked(_setdomainname(encoded, len(encoded)), f"setdomainname {name}")


def prctl(option: int, argument: int = 0, second: int = 0) -> None:
    """Call prctl with up to two arguments."""
    _checked(_prctl(option, argument, second, 0, 0), f"prctl {option}")


def open_in_root(root_fd: int, path: str, flags: int, mode: int = 0) -> int:
    """Open `path` as if `root_fd` were `/`: no symlink or `..` leads outside."""
    how = _OpenHow(flags=flags | os.O_CLOEXEC, mode=mode, resolve=RESOLVE_IN_ROOT)
    return _checked(
        _openat2(
            _NR["openat2"], root_fd, os.fsencode(path), ctypes.addressof(how), ctypes.sizeof(how)
        ),
        path,
    )


def open_tree(directory_fd: int, path: str, *, recursive: bool) -> int:
    """A detached copy of the mount at `path` (or of `directory_fd` itself when `path` is empty)."""
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC
    if recursive:
        flags |= AT_RECURSIVE
    if not path:
        flags |= AT_EMPTY_PATH
    return _checked(
        _open_tree(_NR["open_tree"], directory_fd, os.fsencode(path), flags), f"bind {path}"
    )


def set_mount_attributes(
    tree_fd: int, attributes: int, *, propagation: int = 0, recursive: bool = False
) -> None:
    """Add MOUNT_ATTR_* flags (never clears one) and set the propagation of a detached mount."""
    attr = _MountAttr(attr_set=attributes, propagation=propagation)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _checked(
        _mount_setattr(
            _NR["mount_setattr"], tree_fd, b"", flags, ctypes.addressof(attr), ctypes.sizeof(attr)
        ),
        "mount_setattr",
    )


def map_ids(tree_fd: int, userns_fd: int, *, recursive: bool = False) -> None:
    """Show the files of a detached mount with the ids of a user namespace: 0 is its root's."""
    attr = _MountAttr(attr_set=MOUNT_ATTR_IDMAP, userns_fd=userns_fd)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _checked(
        _mount_setattr(
            _NR["mount_setattr"], tree_fd, b"", flags, ctypes.addressof(attr), ctypes.sizeof(attr)
        ),
        "mount_setattr idmap",
    )


def user_namespace_of(namespace_fd: int) -> int:
    """A descriptor of the user namespace that owns a namespace."""
    result = _ioctl(ctypes.c_int(namespace_fd), ctypes.c_ulong(NS_GET_USERNS))
    return _checked(int(result), "owner of a namespace")


def is_on_proc(fd: int) -> bool:
    """Whether a file is one of a procfs, not of something that only looks like it."""
    found = (ctypes.c_long * 32)()  # a statfs, whose first member is the type
    _checked(_fstatfs(fd, found), "fstatfs")
    return found[0] == PROC_SUPER_MAGIC


def set_file_ids(uid: int, gid: int) -> None:
    """Whose files we make from now on. Capabilities follow unless securebits say otherwise."""
    _setfsgid(gid)
    _setfsuid(uid)


def attach_mount(tree_fd: int, target_fd: int, what: str) -> None:
    """Put a detached mount on the file or directory behind `target_fd`."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    _checked(
        _move_mount(_NR["move_mount"], tree_fd, b"", target_fd, b"", flags), f"mount on {what}"
    )


def new_mount(
    kind: str, options: list[tuple[str, str]], *, source: str = "", attributes: int = 0
) -> int:
    """Make a detached mount through fsopen/fsconfig/fsmount; returns its file descriptor.

    `options` with an empty value are flags. Needed where options exceed one page.
    """
    context = _checked(_fsopen(_NR["fsopen"], kind.encode(), 1), f"fsopen {kind}")
    try:
        if source:
            options = [("source", source), *options]
        for key, value in options:
            command = FSCONFIG_SET_STRING if value else 0
            encoded = os.fsencode(value) if value else None
            _checked(
                _fsconfig(_NR["fsconfig"], context, command, key.encode(), encoded, 0),
                f"{kind} option {key}={value}",
            )
        _checked(
            _fsconfig(_NR["fsconfig"], context, FSCONFIG_CMD_CREATE, None, None, 0),
            f"create {kind} mount",
        )
        return _checked(_fsmount(_NR["fsmount"], context, 1, attributes), f"fsmount {kind}")
    finally:
        os.close(context)


def pivot_root_here() -> None:
    """Make the current directory the root and drop the old root from the mount namespace."""
    _checked(_pivot_root(_NR["pivot_root"], b".", b"."), "pivot_root")
    umount(".")


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    _checked(_close_range(_NR["close_range"], first, 0x7FFFFFFF, 0), "close_range")


def set_capabilities(mask: int) -> None:
    """Make `mask` the permitted and effective set; the inheritable set becomes empty."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    low, high = mask & 0xFFFFFFFF, mask >> 32
    body = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    _checked(_capset(_NR["capset"], ctypes.addressof(header), ctypes.addressof(body)), "capset")


def join_session_keyring() -> None:
    """Give the process a fresh session keyring; kernels without keys are left alone."""
    if _keyctl(_NR["keyctl"], 1, 0) < 0 and ctypes.get_errno() not in (38, 122):
        _checked(-1, "keyctl join session keyring")


def install_seccomp(program: bytes) -> None:
    """Install a classic BPF filter (8 bytes per instruction) on the calling thread."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = _SockFprog(len(program) // 8, ctypes.addressof(buffer))
    _checked(_seccomp(_NR["seccomp"], 1, 0, ctypes.addressof(fprog)), "seccomp filter")


def bpf(command: int, attributes: ctypes.Array[ctypes.c_char], what: str) -> int:
    """Call bpf with a raw attribute block."""
    return _checked(_bpf(_NR["bpf"], command, ctypes.addressof(attributes), len(attributes)), what)


class _PidfdInfo(ctypes.Structure):
    _fields_ = [
        ("mask", ctypes.c_uint64),
        ("cgroupid", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in (
            "pid", "tgid", "ppid", "ruid", "rgid", "euid", "egid", "suid", "sgid", "fsuid",
            "fsgid",
        )),
        ("exit_code", ctypes.c_int32),
        ("coredump_mask", ctypes.c_uint32),
        ("spare", ctypes.c_uint32),
    ]  # fmt: skip


_PIDFD_INFO_EXIT = 8


def exit_status_of(pidfd: int) -> int | None:
    """The wait status of a reaped process that need not be our child; None when not known.

    Works on Linux 6.15 and later (PIDFD_GET_INFO with PIDFD_INFO_EXIT), and only on a pidfd opened
    before the process was reaped.
    """
    info = _PidfdInfo(mask=_PIDFD_INFO_EXIT)
    request = 0xC000FF0B | (ctypes.sizeof(info) << 16)
    result = _ioctl(
        ctypes.c_int(pidfd), ctypes.c_ulong(request), ctypes.c_void_p(ctypes.addressof(info))
    )
    if result < 0 or not info.mask & _PIDFD_INFO_EXIT:
        return None
    return int(info.exit_code)
