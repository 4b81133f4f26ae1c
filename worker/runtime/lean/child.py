"""The life of a container's first process from clone to execve.

Runs in the cloned child of the supervisor: same memory, new namespaces. Before it joins its
control groups it waits for one byte, sent when they exist and the pid is recorded. It reports a
failure as one JSON object on the status pipe; end of file there means the program runs. Refuses
to import anything: after the pivot there is no standard library to import from.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import errno
import fcntl
import gc
import os
import resource
import stat
import struct
import termios

from worker.runtime.lean import accounts, capabilities, consoles, linux, rootfs, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

SETUP_FAILED, NOT_EXECUTABLE, NOT_FOUND = 128, 126, 127
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1
_STATUS_FD = 3


class Start:
    """All a child needs, gathered by the supervisor before the clone."""

    __slots__ = (
        "bundle",
        "cgroup_paths",
        "cgroup_views",
        "close_fds",
        "console_fd",
        "directory",
        "donor_fd",
        "go_fd",
        "group_fds",
        "layers",
        "netns_fd",
        "root_fd",
        "seccomp",
        "status_fd",
        "stdio_fds",
    )

    bundle: dict[str, Any]
    cgroup_paths: list[str]
    cgroup_views: list[tuple[str, str]]
    close_fds: list[int]
    console_fd: int  # where the master of a terminal is sent; -1: none
    directory: str
    donor_fd: int  # a process whose IPC namespace and shared memory are joined; -1: none
    go_fd: int
    group_fds: list[int]  # `tasks` of cgroup v1 directories, opened by who may write them
    layers: list[str]
    netns_fd: int
    root_fd: int  # the detached root of a container with a user namespace; -1: mounted here
    seccomp: bytes
    status_fd: int
    stdio_fds: tuple[int, int, int]


class StartFailure(Exception):
    """The program cannot run; `code` is what Docker would report."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def run(start: Start) -> NoReturn:
    """Become the container. Never returns, whatever happens."""
    guarded(start, _become)


def guarded(start: Any, become: Callable[[Any], NoReturn]) -> NoReturn:
    """Run `become(start)`, report why it failed, and never return: we are a clone.

    `start` has `close_fds` and `status_fd`.
    """
    code = SETUP_FAILED
    try:
        gc.disable()
        for fd in start.close_fds:
            os.close(fd)
        become(start)
    except StartFailure as failure:
        code = failure.code
        _report(start.status_fd, code, str(failure))
    except OSError as error:
        _report(start.status_fd, code, f"{error.filename or 'start'}: {error.strerror or error}")
    except BaseException as error:  # noqa: BLE001 - must not unwind into the supervisor's code
        _report(start.status_fd, code, f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _report(fd: int, code: int, message: str) -> None:
    try:  # noqa: SIM105 - no contextlib here
        os.write(fd, tinyjson.dumps({"code": code, "error": message[:2000]}).encode())
    except OSError:
        pass  # the supervisor is dead: nobody asks for the reason


def _become(start: Start) -> NoReturn:
    bundle = start.bundle
    process = bundle["process"]
    if start.root_fd >= 0:
        become_root()
    _enter_network(start)
    if start.donor_fd >= 0:
        linux.setns(start.donor_fd, linux.CLONE_NEWIPC)
    os.setsid()
    label_keys(process)
    linux.join_session_keyring()
    reset_signals()
    if bundle.get("hostname"):
        linux.sethostname(bundle["hostname"])
    if bundle.get("domainname"):
        linux.setdomainname(bundle["domainname"])
    os.umask(0)
    _build_root(start)
    os.umask(process["user"].get("umask", 0o022))
    take_stdio(start.stdio_fds)
    start.status_fd = close_all_but(start.status_fd)
    drop_privileges(bundle, start.seccomp)
    execute(process["args"], process["env"])


def become_root() -> None:
    """Be the root of the user namespace we are in: until then our ids have no meaning there.

    Nobody who is in it already may trace us meanwhile: we still hold what is the node's.
    """
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)


def take_stdio(fds: tuple[int, int, int]) -> None:
    """Make `fds` the standard streams; -1 is the container's own /dev/null.

    Not the host's: whoever is root inside could change its mode and owner through the descriptor.
    """
    for target, source in enumerate(fds):
        if source >= 0:
            os.dup2(source, target)
        else:
            flags = os.O_RDONLY if target == 0 else os.O_WRONLY
            null = os.open("/dev/null", flags | os.O_CLOEXEC)
            os.dup2(null, target)
            os.close(null)
    if os.isatty(fds[0]):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def close_all_but(status_fd: int) -> int:
    """Close every descriptor but the standard ones and `status_fd`; returns its new number.

    Nothing of the host may be open when the working directory is entered: an image could name
    /proc/self/fd/N as its directory and stand outside (CVE-2024-21626).
    """
    os.dup2(status_fd, _STATUS_FD, inheritable=False)
    linux.close_from(_STATUS_FD + 1)
    return _STATUS_FD


def join_groups(paths: list[str]) -> None:
    """Move ourselves into cgroup v1 directories."""
    for path in paths:
        # `tasks` with 0, not `cgroup.procs`: a thread that moves itself takes no lock, and so waits
        # for no RCU grace period (5-15 ms on a busy machine).
        _join_group(os.open(f"{path}/tasks", os.O_WRONLY | os.O_CLOEXEC))


def _join_group(tasks_fd: int) -> None:
    os.write(tasks_fd, b"0")
    os.close(tasks_fd)


def _await_go(start: Start) -> None:
    if not os.read(start.go_fd, 1):
        raise StartFailure(SETUP_FAILED, "the supervisor died while it started the container")
    join_groups(start.cgroup_paths)
    for fd in start.group_fds:
        _join_group(fd)
    if any(entry["type"] == "cgroup" for entry in start.bundle["linux"]["namespaces"]):
        linux.unshare(linux.CLONE_NEWCGROUP)


def _enter_network(start: Start) -> None:
    if start.netns_fd >= 0:
        linux.setns(start.netns_fd, linux.CLONE_NEWNET)
        os.close(start.netns_fd)
        return
    for namespace in start.bundle["linux"]["namespaces"]:
        if namespace["type"] == "network":
            request = struct.pack("16sh22x", b"lo", _IFF_UP)
            sock = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
            fcntl.ioctl(sock.fileno(), _SIOCSIFFLAGS, request)
            sock.close()


def reset_signals() -> None:
    """Let the container ignore none: what is ignored stays so across execve.

    Python ignores the first two, a daemon begun by nohup or in a shell's background the others.
    """
    for number in (
        _signal.SIGPIPE, _signal.SIGXFSZ, _signal.SIGHUP, _signal.SIGINT, _signal.SIGQUIT,
    ):  # fmt: skip
        _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _build_root(start: Start) -> None:
    bundle = start.bundle
    settings = bundle["linux"]
    linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
    if start.root_fd >= 0:
        root_fd = rootfs.put_root(start.root_fd)
    else:
        rootfs.label_mounts(bundle, start.directory)
        label = settings.get("mountLabel", "")
        root_fd = rootfs.mount_overlay(start.layers, start.directory, label)
    mounts = bundle["mounts"]
    groups_at = next((i for i, m in enumerate(mounts) if m["type"] == "cgroup"), len(mounts))
    rootfs.apply_mounts(root_fd, mounts[:groups_at], start.cgroup_views, start.donor_fd)
    if start.console_fd >= 0:
        slave = consoles.open_pair(root_fd, start.console_fd)
        consoles.show(root_fd, slave)
        start.stdio_fds = (slave, slave, slave)
    _await_go(start)
    rootfs.apply_mounts(root_fd, mounts[groups_at:], start.cgroup_views, start.donor_fd)
    rootfs.make_devices(root_fd, settings.get("devices", []))
    rootfs.set_sysctls(root_fd, settings.get("sysctl", {}))
    rootfs.protect(root_fd, settings["readonlyPaths"])
    rootfs.mask(root_fd, settings["maskedPaths"], settings.get("mountLabel", ""))
    rootfs.enter(root_fd)


def _set_limits(process: dict[str, Any]) -> None:
    """The adjustment of the OOM score, and resource limits, as high as we may set them.

    Late, when nothing of ours is open any more and little is opened: the limit of descriptors is
    the program's, not ours.
    """
    adjustment = process.get("oomScoreAdj")
    if adjustment:
        adjust_oom_score(adjustment)
    for limit in process.get("rlimits", ()):
        number = getattr(resource, limit["type"])
        soft, hard = limit["soft"], limit["hard"]
        try:
            resource.setrlimit(number, (soft, hard))
        except (ValueError, OSError):  # no CAP_SYS_RESOURCE: as high as we may
            ceiling = resource.getrlimit(number)[1]
            resource.setrlimit(number, (_clamp(soft, ceiling), _clamp(hard, ceiling)))


def adjust_oom_score(adjustment: int) -> None:
    """Of this process and its children. Raises: StartFailure."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(adjustment).encode())
    except PermissionError as error:
        raise StartFailure(
            SETUP_FAILED,
            f"oom_score_adj {adjustment}: lowering it needs CAP_SYS_RESOURCE ({error})",
        ) from None
    finally:
        os.close(fd)


def _clamp(value: int, ceiling: int) -> int:
    if ceiling == resource.RLIM_INFINITY:
        return value
    return ceiling if value == resource.RLIM_INFINITY else min(value, ceiling)


def drop_privileges(bundle: dict[str, Any], seccomp: bytes, *, make_cwd: bool = True) -> None:
    """Become the user, keep only the capabilities, install the filter, enter the directory."""
    process = bundle["process"]
    account = _account(bundle["annotations"])
    if not any(entry.startswith("HOME=") for entry in process["env"]):
        process["env"].append(f"HOME={account.home}")
    if account.uid:
        _own_stdio(account)
    if make_cwd:
        _make_cwd(process["cwd"])
    if bundle["root"].get("readonly"):
        rootfs.make_read_only()
    _set_limits(process)
    bounding = capabilities.mask_of(process["capabilities"]["bounding"])
    _drop_bounding(bounding)
    no_new_privileges = process.get("noNewPrivileges", False)
    if no_new_privileges:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    elif seccomp:
        # Without no_new_privs only CAP_SYS_ADMIN may install a filter: before it is given up.
        linux.install_seccomp(seccomp)
    _confine(process.get("apparmorProfile", ""))
    _label(process.get("selinuxLabel", ""))
    _take_ids(account)
    linux.set_capabilities(bounding if account.uid == 0 else 0)
    try:
        os.chdir(process["cwd"])
        os.getcwd()  # fails when it is not below the root
    except OSError as error:
        raise StartFailure(
            NOT_FOUND if error.errno == errno.ENOENT else NOT_EXECUTABLE,
            f'chdir to cwd ("{process["cwd"]}") set in config.json failed: '
            f"{str(error.strerror).lower()}",
        ) from None
    if no_new_privileges and seccomp:
        linux.install_seccomp(seccomp)


def _take_ids(account: accounts.Account) -> None:
    try:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    except OSError as error:
        raise _unmapped(account) if error.errno == errno.EINVAL else error from None


def _unmapped(account: accounts.Account) -> StartFailure:
    numbers = ", ".join(str(one) for one in (account.uid, account.gid, *account.groups))
    return StartFailure(
        SETUP_FAILED,
        f"user: one of the ids {numbers} is not mapped in the container's user namespace: use "
        "lower ones, enlarge the ranges in /etc/subuid and /etc/subgid, or use --userns host",
    )


def _confine(profile: str) -> None:
    """Have the kernel put the program under an AppArmor profile. Raises: StartFailure."""
    if not profile:
        return
    try:
        _write_attribute("apparmor/exec", "exec", text=f"exec {profile}")
    except OSError as error:
        if profile == "unconfined":  # the kernel has it, but it is not in use
            return
        reason = "it is not loaded" if error.errno == errno.ENOENT else error.strerror
        raise StartFailure(SETUP_FAILED, f"apply apparmor profile {profile}: {reason}") from None


def _label(label: str) -> None:
    """Have the program run with an SELinux label. Raises: StartFailure."""
    if label:
        try:
            _write_attribute("exec", text=label)
        except OSError as error:
            raise StartFailure(
                SETUP_FAILED, f"set SELinux label {label}: {error.strerror}"
            ) from None


def label_keys(process: dict[str, Any]) -> None:
    """So that the program may use the session keyring that is made next."""
    label = process.get("selinuxLabel", "")
    if label:
        try:
            _write_attribute("keycreate", text=label)
        except OSError as error:
            raise StartFailure(
                SETUP_FAILED, f"set SELinux label {label} for keys: {error.strerror}"
            ) from None


def _write_attribute(*names: str, text: str) -> None:
    """Write to the first of our own security attributes that the kernel has. Raises: OSError.

    Never to a file that only looks like one: the image could have brought it (CVE-2019-16884).
    """
    for name in names:
        try:
            fd = os.open(f"/proc/self/attr/{name}", os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            if not linux.is_on_proc(fd):
                raise OSError(errno.EINVAL, "/proc is not what it should be")
            os.write(fd, text.encode())
        finally:
            os.close(fd)
        return
    raise OSError(errno.EOPNOTSUPP, "the kernel has no such attribute")


def _own_stdio(account: accounts.Account) -> None:
    """So that the program may open /dev/stdout and /dev/stderr again."""
    for fd in (0, 1, 2):
        status = os.fstat(fd)
        if stat.S_ISFIFO(status.st_mode) or os.isatty(fd):
            try:
                os.fchown(fd, account.uid, -1 if os.isatty(fd) else account.gid)
            except OSError as error:
                raise _unmapped(account) if error.errno == errno.EINVAL else error from None


def _account(annotations: dict[str, str]) -> accounts.Account:
    extra = annotations.get("dev.shoal.groups", "")
    try:
        return accounts.find_account(
            annotations.get("dev.shoal.user", ""),
            extra.split(",") if extra else [],
            passwd=_text("/etc/passwd"),
            group=_text("/etc/group"),
        )
    except ValueError as error:
        raise StartFailure(SETUP_FAILED, str(error)) from None


def _text(path: str) -> str:
    try:
        return read_some(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK))
    except OSError:
        return ""


def read_some(fd: int) -> str:
    """The text behind a descriptor, as far as it is of a sensible size; closes it."""
    pieces: list[bytes] = []
    while len(pieces) < 64 and (piece := os.read(fd, 65536)):
        pieces.append(piece)
    os.close(fd)
    return b"".join(pieces).decode("utf-8", "replace")


def _make_cwd(path: str) -> None:
    walked = ""
    for part in path.split("/"):
        if part:
            walked = f"{walked}/{part}"
            try:
                os.mkdir(walked, 0o755)
            except FileExistsError:
                continue
            except OSError as error:
                raise StartFailure(SETUP_FAILED, f"make cwd {path!r}: {error.strerror}") from None


def _drop_bounding(keep: int) -> None:
    for bit in range(len(capabilities.NAMES)):
        if not keep >> bit & 1:
            try:
                linux.prctl(linux.PR_CAPBSET_DROP, bit)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a capability newer than this kernel
                    raise


def execute(args: list[str], env: list[str]) -> NoReturn:
    """Run the program, found as a shell would find it. Raises: StartFailure."""
    name = args[0]
    environment = dict(entry.partition("=")[::2] for entry in env)
    if "/" in name:
        candidates = [name]
    else:
        path = environment.get(
            "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        )
        candidates = [f"{part or '.'}/{name}" for part in path.split(":")]
    refused: OSError | None = None
    for candidate in candidates:
        try:
            os.execve(candidate, args, environment)  # noqa: S606
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            refused = refused or error
    quoted = '"' + name.replace('"', '\\"') + '"'
    if refused is not None:
        reason = "is a directory" if os.path.isdir(candidates[0]) else str(refused.strerror).lower()
        raise StartFailure(NOT_EXECUTABLE, f"exec: {quoted}: {reason}")
    if "/" in name:
        raise StartFailure(NOT_FOUND, f"exec: {quoted}: stat {name}: no such file or directory")
    raise StartFailure(NOT_FOUND, f"exec: {quoted}: executable file not found in $PATH")
