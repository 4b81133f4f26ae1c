"""Driving an installed OCI runtime: the life of the process that does it, once per start.

A clone of the supervisor in a mount namespace of its own: mounts the root, writes the runtime's
`config.json`, has the container created, tells its pid, waits for the go byte, has it started, and
ends. The container's first process is adopted by the keeper, which records how it ends. May wait,
unlike the supervisor; reports as `child` does.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import binascii
import os

from worker.runtime.lean import accounts, child, files, linux, rootfs, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

_OWN_DEVICES = frozenset(
    f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")
)
_MISSING = ("executable file not found", "no such file or directory", "not found in $path")
_FORBIDDEN = ("permission denied", "is a directory")


class Drive:
    """All such a process needs, gathered by the supervisor before the clone."""

    __slots__ = (
        "bundle",
        "close_fds",
        "console_fd",
        "console_path",
        "directory",
        "go_fd",
        "group",
        "id",
        "layers",
        "namespaces",
        "seccomp",
        "state_dir",
        "status_fd",
        "stdio_fds",
    )

    bundle: dict[str, Any]
    close_fds: list[int]
    console_fd: int
    console_path: str
    directory: str
    go_fd: int
    group: str
    id: str
    layers: list[str]
    namespaces: list[dict[str, str]]
    seccomp: bytes
    state_dir: str
    status_fd: int
    stdio_fds: tuple[int, int, int]


def run(drive: Drive) -> NoReturn:
    """Have the container made and started. Never returns, whatever happens."""
    child.guarded(drive, _drive)


def _drive(drive: Drive) -> NoReturn:
    os.setsid()
    linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
    name = drive.bundle["annotations"]["dev.shoal.runtime"]
    rootfs.label_files(drive.bundle, drive.directory)
    label = drive.bundle["linux"].get("mountLabel", "")
    root_fd = rootfs.mount_overlay(drive.layers, drive.directory, label)
    os.makedirs(_place(drive), 0o700, exist_ok=True)
    files.write_new(f"{_place(drive)}/config.json", tinyjson.dumps(_config(drive, root_fd)))
    os.close(root_fd)
    if name == "crun":
        _hide_unified()
    if os.path.exists(f"{drive.state_dir}/{drive.id}"):
        _call(drive, "delete", "--force")  # of a start that was cut short
    _create(drive)
    pid = int(files.read_text(f"{_place(drive)}/pid"))
    os.write(drive.status_fd, tinyjson.dumps({"pid": pid}).encode())
    if not os.read(drive.go_fd, 1):
        _call(drive, "delete", "--force")
        raise child.StartFailure(child.SETUP_FAILED, "the supervisor died while it started it")
    _call(drive, "start")
    os._exit(0)


def _place(drive: Drive) -> str:
    return f"{drive.directory}/oci"


def _hide_unified() -> None:
    """Hide the mix of versions, which crun refuses while a controller is left to version 2.

    Behind something of our own: what crun makes there must not stay below the hierarchy.
    """
    if os.path.exists("/sys/fs/cgroup/unified/cgroup.procs"):
        linux.mount("tmpfs", "/sys/fs/cgroup/unified", "tmpfs", 0)


def _create(drive: Drive) -> None:
    arguments = ["--bundle", _place(drive), "--pid-file", f"{_place(drive)}/pid"]
    if drive.console_fd < 0:
        _call(drive, "create", *arguments, stdio=drive.stdio_fds)
        return
    files.discard(drive.console_path)
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC, 0)
    listener.bind(drive.console_path)
    listener.listen(1)
    try:
        _call(drive, "create", *arguments, "--console-socket", drive.console_path)
        listener.settimeout(5)
        fd, _ = listener._accept()  # type: ignore[attr-defined]
    finally:
        files.discard(drive.console_path)
    source, link = _socket.socket(fileno=fd), _socket.socket(fileno=drive.console_fd)
    _, rights, _, _ = source.recvmsg(4096, _socket.CMSG_SPACE(4))
    link.sendmsg([b"m"], rights)
    link.close()


def _call(
    drive: Drive, verb: str, *arguments: str, stdio: tuple[int, int, int] = (-1, -1, -1)
) -> None:
    """Run the runtime to its end. Raises: StartFailure with what it says."""
    annotations = drive.bundle["annotations"]
    program, log = annotations["dev.shoal.runtime-path"], f"{_place(drive)}/log"
    files.discard(log)
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, n, "/dev/null", os.O_RDWR, 0)
        if fd < 0
        else (os.POSIX_SPAWN_DUP2, fd, n)
        for n, fd in enumerate(stdio)
    ]
    pid = os.posix_spawn(
        program,
        [program, "--root", drive.state_dir, "--log", log, "--log-format", "json", verb,
         *arguments, drive.id],
        {"PATH": os.defpath},
        file_actions=actions,
        setsigdef=[_signal.SIGPIPE, _signal.SIGXFSZ],
    )  # fmt: skip
    _, status = os.waitpid(pid, 0)
    if status:
        words = _last_words(log) or f"{program} {verb} ended with wait status {status}"
        raise child.StartFailure(_code_of(words), words)


def _last_words(log: str) -> str:
    try:
        lines = [tinyjson.loads(line) for line in files.read_text(log).splitlines()]
    except (OSError, ValueError):
        return ""
    errors = [line["msg"] for line in lines if line.get("level") == "error"]
    return str(errors[-1]) if errors else ""


def _code_of(words: str) -> int:
    text = words.lower()
    if any(part in text for part in _MISSING):
        return child.NOT_FOUND
    return child.NOT_EXECUTABLE if any(p in text for p in _FORBIDDEN) else child.SETUP_FAILED


def _config(drive: Drive, root_fd: int) -> dict[str, Any]:
    """The bundle as the OCI knows it: ids in numbers, paths of namespaces, nothing of ours."""
    bundle, annotations = dict(drive.bundle), drive.bundle["annotations"]
    account = _account(root_fd, annotations)
    process = dict(bundle["process"])
    process["user"] = {
        "uid": account.uid, "gid": account.gid, "additionalGids": account.groups,
        "umask": process["user"]["umask"],
    }  # fmt: skip
    if not any(entry.startswith("HOME=") for entry in process["env"]):
        process["env"] = [*process["env"], f"HOME={account.home}"]
    if account.uid:
        process["capabilities"] = process["capabilities"] | {"effective": [], "permitted": []}
    settings = dict(bundle["linux"])
    settings["namespaces"], settings["cgroupsPath"] = drive.namespaces, drive.group
    settings["devices"] = [d for d in settings["devices"] if d["path"] not in _OWN_DEVICES]
    kept = {name: text for name, text in annotations.items() if not name.startswith("dev.shoal.")}
    if drive.seccomp:
        kept["run.oci.seccomp_bpf_data"] = binascii.b2a_base64(
            drive.seccomp, newline=False
        ).decode()
    root = {"path": f"{drive.directory}/rootfs", "readonly": bundle["root"]["readonly"]}
    return bundle | {
        "process": process, "linux": settings, "root": root, "annotations": kept,
    }  # fmt: skip


def _account(root_fd: int, annotations: dict[str, str]) -> accounts.Account:
    extra = annotations.get("dev.shoal.groups", "")
    try:
        return accounts.find_account(
            annotations.get("dev.shoal.user", ""),
            extra.split(",") if extra else [],
            passwd=_text(root_fd, "/etc/passwd"),
            group=_text(root_fd, "/etc/group"),
        )
    except ValueError as error:
        raise child.StartFailure(child.SETUP_FAILED, str(error)) from None


def _text(root_fd: int, path: str) -> str:
    try:
        fd = linux.open_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    return child.read_some(fd)
