"""What a container in a user namespace needs of the node, gathered by who still has the right to.

Runs in a clone of the supervisor with a mount namespace of its own. It opens the root, binds and
devices as detached mounts, joins what is owned by the node, enters the user namespace, which cannot
be left again, and clones the container's first process as its own sibling. Then it ends: the child
of the supervisor is the container, and all namespaces made for it belong to the user namespace.

Invariants: files of the container are stored with the ids it sees, so images, commits, copies and
volumes are the same with and without a mapping; nothing this process holds and the container must
not have outlives `execve`. Refuses a network namespace whose owner has another mapping.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import resource

from worker.runtime.lean import child, linux, rootfs, tinyjson

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Mapping = list[dict[str, int]]

_KINDS = ("uid", "gid")


class Prepare:
    """All such a process needs. start: what is handed on to the container's first process."""

    __slots__ = (
        "close_fds",
        "flags",
        "group_fd",
        "lenders",
        "pids_fd",
        "start",
        "status_fd",
    )

    close_fds: list[int]
    flags: int
    group_fd: int  # cgroup v2 directory the container is born in; -1: it joins groups itself
    lenders: list[int]  # first processes of the containers whose namespaces are shared
    pids_fd: int  # a process whose pid namespace is joined; -1: none
    start: child.Start
    status_fd: int


def run(prepare: Prepare) -> NoReturn:
    """Prepare, clone, tell the pid. Never returns, whatever happens."""
    child.guarded(prepare, _prepare)


def _prepare(prepare: Prepare) -> NoReturn:
    start = prepare.start
    settings = start.bundle["linux"]
    maps = {kind: _text_of(settings[f"{kind}Mappings"]) for kind in _KINDS}
    owner = _user_namespace(prepare, maps)
    root = {kind: _host_id(settings[f"{kind}Mappings"], kind) for kind in _KINDS}
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_SLAVE)
    os.umask(0)
    rootfs.label_mounts(start.bundle, start.directory)
    start.root_fd = _open_root(start, owner, root["uid"], root["gid"])
    _open_binds(start, owner)
    _open_devices(start)
    own_streams(start.stdio_fds, settings)
    raise_limits(start.bundle["process"])
    start.group_fds = [
        os.open(f"{p}/tasks", os.O_WRONLY | os.O_CLOEXEC) for p in start.cgroup_paths
    ]
    start.cgroup_paths = []
    _join_shared(prepare)
    os.chdir(f"{start.directory}/rootfs")
    _enter(owner, maps)
    pid, _ = linux.clone(prepare.flags | linux.CLONE_PARENT, cgroup_fd=prepare.group_fd)
    if pid == 0:
        os.close(prepare.status_fd)
        start.close_fds = []
        child.run(start)
    os.write(prepare.status_fd, tinyjson.dumps({"pid": pid}).encode())
    os._exit(0)


def _text_of(mapping: Mapping) -> str:
    return "".join(f"{m['containerID']} {m['hostID']} {m['size']}\n" for m in mapping)


def _refused(reason: str) -> child.StartFailure:
    return child.StartFailure(child.SETUP_FAILED, reason)


def _host_id(mapping: Mapping, kind: str) -> int:
    for part in mapping:
        if part["containerID"] == 0:
            return part["hostID"]
    raise _refused(f"userns: {kind} 0 of the container is not mapped")


# The user namespace ----------------------------------------------------------------------------


def _user_namespace(prepare: Prepare, maps: dict[str, str]) -> int:
    """What owns the namespaces to be joined, or a new one. Raises: StartFailure, OSError."""
    owners = [os.open(f"/proc/{pid}/ns/user", os.O_RDONLY) for pid in prepare.lenders]
    if prepare.start.netns_fd >= 0:
        owners.append(linux.user_namespace_of(prepare.start.netns_fd))
    if not owners:
        return _make_user_namespace(maps)
    own = os.stat("/proc/self/ns/user")
    numbers = {os.fstat(fd).st_ino for fd in owners}
    if own.st_ino in numbers:
        raise _refused(
            "userns: a namespace to be joined belongs to the node, as of a container that runs "
            "with --userns host or was started before ids were remapped: use --userns host, too"
        )
    if len(numbers) > 1:
        raise _refused(
            "userns: the namespaces to be joined belong to different user namespaces; share the "
            "network of the same container, too, or use --userns host"
        )
    return owners[0]


def _make_user_namespace(maps: dict[str, str]) -> int:
    """One with these maps, kept by its descriptor alone."""
    try:
        pid, pidfd = linux.clone(linux.CLONE_NEWUSER)
    except OSError as error:
        raise _refused(
            f"userns: the kernel makes no user namespace ({error.strerror}): is the sysctl "
            "user.max_user_namespaces too low?"
        ) from None
    if pid == 0:
        while True:
            _signal.pause()
    try:
        for kind in _KINDS:
            _write(f"/proc/{pid}/{kind}_map", maps[kind])
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        linux.kill_and_reap(pidfd)
        os.close(pidfd)


def _enter(owner: int, maps: dict[str, str]) -> None:
    linux.setns(owner, linux.CLONE_NEWUSER)
    for kind in _KINDS:
        fd = os.open(f"/proc/self/{kind}_map", os.O_RDONLY | os.O_CLOEXEC)
        found = [line.split() for line in child.read_some(fd).splitlines()]
        if found != [line.split() for line in maps[kind].splitlines()]:
            raise _refused(
                "userns: a namespace to be joined belongs to a user namespace with other ids; "
                "make its container anew"
            )


# What is outside -------------------------------------------------------------------------------


def _open_root(start: child.Start, owner: int, uid: int, gid: int) -> int:
    """The detached root. Its layers show what is stored as 0 as the container's root.

    Each is covered with itself, seen through the mapping, so all paths stay as they are. The
    overlay makes files of its own with the ids of who mounts it, which must be mapped as well.
    """
    places = [*dict.fromkeys(start.layers), start.directory]
    trees = []
    for place in places:
        trees.append(linux.open_tree(linux.AT_FDCWD, place, recursive=False))
        _map(trees[-1], owner, place)
    for place, tree in zip(places, trees):  # noqa: B905 - of the same length
        below = os.open(place, linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        linux.attach_mount(tree, below, place)
        os.close(below)
        os.close(tree)
    linux.prctl(linux.PR_SET_SECUREBITS, linux.SECBIT_NO_SETUID_FIXUP)
    linux.set_file_ids(uid, gid)
    label = start.bundle["linux"].get("mountLabel", "")
    mounted = rootfs.mount_overlay(start.layers, start.directory, label)
    linux.set_file_ids(0, 0)
    tree = linux.open_tree(mounted, "", recursive=False)
    os.close(mounted)
    linux.umount(f"{start.directory}/rootfs")
    return tree


def _map(tree: int, owner: int, place: str, *, recursive: bool = False) -> None:
    try:
        linux.map_ids(tree, owner, recursive=recursive)
    except OSError as error:
        raise OSError(
            error.errno,
            f"the file system cannot show mapped ids ({error.strerror}): it takes ext4, xfs, btrfs "
            "or tmpfs on Linux 5.12 or later; use --userns host",
            place,
        ) from None


def _open_binds(start: child.Start, owner: int) -> None:
    for entry in start.bundle["mounts"]:
        tree = rootfs.open_outside(entry, start.donor_fd)
        if tree < 0:
            continue
        entry["tree"] = tree
        options = entry.get("options", ())
        if rootfs.IDMAP in options and not entry["source"].startswith(f"{start.directory}/"):
            _map(tree, owner, entry["source"], recursive="bind" not in options)


def _open_devices(start: child.Start) -> None:
    """Nodes that may be opened: one made inside could not. They keep the owners they have here."""
    devices = start.bundle["linux"].get("devices", [])
    place = f"{start.directory}/rootfs"
    label = start.bundle["linux"].get("mountLabel", "")
    options = f"mode=700,{rootfs.context_option(label)}" if label else "mode=700"
    linux.mount("tmpfs", place, "tmpfs", linux.MS_NOSUID | linux.MS_NOEXEC, options)
    directory = os.open(place, linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, device in enumerate(devices):
        rootfs.make_device(device, str(number), directory)
        device["tree"] = linux.open_tree(directory, str(number), recursive=False)
    os.close(directory)
    linux.umount(place)


def own_streams(fds: tuple[int, int, int], settings: dict[str, Any]) -> None:
    """Give streams to the container's root: so its programs may open /dev/stdout again."""
    uid, gid = (_host_id(settings[f"{kind}Mappings"], kind) for kind in _KINDS)
    for fd in fds:
        if fd >= 0:
            os.fchown(fd, uid, gid)


def raise_limits(process: dict[str, Any]) -> None:
    """What takes CAP_SYS_RESOURCE on the node; the rest of the limits is set inside."""
    adjustment = process.get("oomScoreAdj")
    if adjustment:
        child.adjust_oom_score(adjustment)
        process["oomScoreAdj"] = 0
    for limit in process.get("rlimits", ()):
        number = getattr(resource, limit["type"])
        soft, hard = resource.getrlimit(number)
        wanted = limit["hard"]
        if hard != resource.RLIM_INFINITY and (wanted == resource.RLIM_INFINITY or wanted > hard):
            try:
                resource.setrlimit(number, (soft, wanted))
            except (ValueError, OSError):
                continue  # no CAP_SYS_RESOURCE: as high as we may


def _join_shared(prepare: Prepare) -> None:
    """Namespaces that are there already; those of the container's own are made by the clone."""
    start = prepare.start
    if start.netns_fd >= 0:
        linux.setns(start.netns_fd, linux.CLONE_NEWNET)
        start.netns_fd = -1
    if start.donor_fd >= 0:
        linux.setns(start.donor_fd, linux.CLONE_NEWIPC)
        start.donor_fd = -1
    if prepare.pids_fd >= 0:
        linux.setns(prepare.pids_fd, linux.CLONE_NEWPID)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (writing {text.strip()!r})", path) from None
    finally:
        os.close(fd)
