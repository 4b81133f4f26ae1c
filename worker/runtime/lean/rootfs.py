"""A container's file system, built inside its own mount namespace before it pivots into it.

Every target is found with openat2(RESOLVE_IN_ROOT) and mounted through its descriptor, so no
symlink of an image can move a mount out of the root. Nothing is mounted in the host's namespace:
when the container's last process ends, the kernel drops it all.
"""

from __future__ import annotations

import os
import stat

from worker.runtime.lean import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FLAGS = {
    "ro": linux.MS_RDONLY,
    "nosuid": linux.MS_NOSUID,
    "nodev": linux.MS_NODEV,
    "noexec": linux.MS_NOEXEC,
    "noatime": linux.MS_NOATIME,
    "nodiratime": linux.MS_NODIRATIME,
    "sync": linux.MS_SYNCHRONOUS,
    "dirsync": linux.MS_DIRSYNC,
    "relatime": linux.MS_RELATIME,
    "strictatime": linux.MS_STRICTATIME,
}
_ATTRIBUTES = {
    "ro": linux.MOUNT_ATTR_RDONLY,
    "nosuid": linux.MOUNT_ATTR_NOSUID,
    "nodev": linux.MOUNT_ATTR_NODEV,
    "noexec": linux.MOUNT_ATTR_NOEXEC,
}
_PROPAGATION = {
    "private": linux.MS_PRIVATE,
    "rprivate": linux.MS_PRIVATE,
    "slave": linux.MS_SLAVE,
    "rslave": linux.MS_SLAVE,
    "shared": linux.MS_SHARED,
    "rshared": linux.MS_SHARED,
}
_LABELLED = frozenset(("tmpfs", "devpts", "cgroup"))
IDMAP = "idmap"
"""Option of a bind whose files are stored with the ids of the container; `preparing` maps them."""
_NEUTRAL = frozenset((
    "rw", "suid", "dev", "exec", "bind", "rbind", "defaults", "async", "atime", "diratime",
    "norelatime", "nostrictatime", "remount", IDMAP, *_PROPAGATION,
))  # fmt: skip


def mount_overlay(layers: list[str], directory: str, label: str = "") -> int:
    """Mount `layers` (topmost first) under `directory`/{upper,work}; returns the root's O_PATH fd.

    More lower directories than fit into one page of options go through fsconfig. label: SELinux's,
    of all files of the root.
    """
    target, upper, work = (f"{directory}/{name}" for name in ("rootfs", "upper", "work"))
    lower = ":".join(_escape(layer) for layer in layers)
    options = f"lowerdir={lower},upperdir={_escape(upper)},workdir={_escape(work)}"
    if label:
        options += f",{context_option(label)}"
    if len(os.fsencode(options)) <= 4000:
        linux.mount("overlay", target, "overlay", 0, options)
    else:
        pairs = [("lowerdir+", layer) for layer in layers]
        pairs += [("upperdir", upper), ("workdir", work)]
        pairs += [("context", label)] if label else []
        tree = linux.new_mount("overlay", pairs, source="overlay")
        below = os.open(target, linux.O_PATH | os.O_DIRECTORY)
        linux.attach_mount(tree, below, target)
        os.close(below)
        os.close(tree)
    return os.open(target, linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def context_option(label: str) -> str:
    """The mount option that gives every file of a mount an SELinux label."""
    return f'context="{label}"'


def label_mounts(bundle: dict[str, Any], directory: str) -> None:
    """Give what is made for the container alone its SELinux label: mounts, and files of ours."""
    label = bundle["linux"].get("mountLabel", "")
    for entry in bundle["mounts"] if label else ():
        if entry["type"] in _LABELLED:
            entry["options"] = [*entry.get("options", ()), context_option(label)]
    label_files(bundle, directory)


def label_files(bundle: dict[str, Any], directory: str) -> None:
    """Give the files that are bound from the container's own directory its SELinux label."""
    label = bundle["linux"].get("mountLabel", "")
    for entry in bundle["mounts"] if label else ():
        if entry["type"] == "bind" and entry["source"].startswith(f"{directory}/"):
            os.setxattr(entry["source"], "security.selinux", label.encode() + b"\0")


def put_root(tree: int) -> int:
    """Mount a detached root on the working directory; returns a descriptor of it."""
    below = os.open(".", linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.attach_mount(tree, below, "the root")
    os.close(below)
    return tree


def _escape(path: str) -> str:
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def open_target(root_fd: int, path: str, *, directory: bool) -> int:
    """An O_PATH descriptor of `path` inside the root; missing parts are made, owned by root."""
    try:
        return linux.open_in_root(root_fd, path, linux.O_PATH)
    except FileNotFoundError:
        pass
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"mount target {path} must not contain '..'")
    parent, walked = os.dup(root_fd), ""
    for index, part in enumerate(parts):
        walked = f"{walked}/{part}"
        try:
            child = linux.open_in_root(root_fd, walked, linux.O_PATH)
        except FileNotFoundError:
            _make(part, parent, directory=directory or index < len(parts) - 1)
            child = linux.open_in_root(root_fd, walked, linux.O_PATH)
        os.close(parent)
        parent = child
    return parent


def _make(name: str, parent_fd: int, *, directory: bool) -> None:
    if directory:
        os.mkdir(name, 0o755, dir_fd=parent_fd)
    else:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(name, flags, 0o644, dir_fd=parent_fd))


def apply_mounts(
    root_fd: int,
    mounts: list[dict[str, Any]],
    cgroup_views: list[tuple[str, str]],
    donor: int = -1,
) -> None:
    """Carry out an OCI `mounts` list in order.

    Type `cgroup` shows `cgroup_views`; `shared-memory` is that of another container, by its process
    `donor`; one with a `tree` was opened before, by who had the right to.
    """
    for entry in mounts:
        kind = entry["type"]
        if "tree" in entry:
            _attach(root_fd, entry["destination"], entry["tree"])
        elif kind == "bind":
            _attach(root_fd, entry["destination"], open_bind(entry))
        elif kind == "shared-memory":
            _attach(root_fd, entry["destination"], _take_mount(donor, entry["destination"]))
        elif kind == "cgroup":
            _show_cgroups(root_fd, entry, cgroup_views)
        else:
            _mount(root_fd, entry)


def open_outside(entry: dict[str, Any], donor: int) -> int:
    """The detached mount of an entry that shows what is outside; -1: it is made inside."""
    if entry["type"] == "bind":
        return open_bind(entry)
    if entry["type"] == "shared-memory":
        return _take_mount(donor, entry["destination"])
    return -1


def open_bind(entry: dict[str, Any]) -> int:
    """The detached mount of an OCI bind. Raises: OSError, ValueError."""
    options = entry.get("options", ())
    recursive = "bind" not in options
    tree = linux.open_tree(linux.AT_FDCWD, entry["source"], recursive=recursive)
    attributes, propagation = 0, linux.MS_PRIVATE
    for option in options:
        if option in _ATTRIBUTES:
            attributes |= _ATTRIBUTES[option]
        elif option in _PROPAGATION:
            propagation = _PROPAGATION[option]
        elif option not in _NEUTRAL:
            raise ValueError(f"mount {entry['destination']}: unknown bind option {option}")
    linux.set_mount_attributes(tree, attributes, propagation=propagation, recursive=recursive)
    return tree


def _attach(root_fd: int, destination: str, tree: int) -> None:
    """Put a detached mount in its place and close it."""
    is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
    target = open_target(root_fd, destination, directory=is_directory)
    linux.attach_mount(tree, target, destination)
    os.close(target)
    os.close(tree)


def _take_mount(pidfd: int, path: str) -> int:
    """A detached copy of a mount of another process, from inside its namespace."""
    own = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(pidfd, linux.CLONE_NEWNS)
    try:
        return linux.open_tree(linux.AT_FDCWD, path, recursive=False)
    finally:
        linux.setns(own, linux.CLONE_NEWNS)
        os.close(own)


def _mount(root_fd: int, entry: dict[str, Any]) -> None:
    flags, rest = 0, []
    for option in entry.get("options", ()):
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in _NEUTRAL:
            rest.append(option)
    target = open_target(root_fd, entry["destination"], directory=True)
    try:
        linux.mount(
            entry["source"], f"/proc/self/fd/{target}", entry["type"], flags, ",".join(rest)
        )
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"mount {entry['destination']}") from None
    finally:
        os.close(target)


def _show_cgroups(root_fd: int, entry: dict[str, Any], views: list[tuple[str, str]]) -> None:
    destination, mode = entry["destination"], [o for o in entry["options"] if o in _ATTRIBUTES]
    if len(views) == 1 and not views[0][0]:
        view: dict[str, Any] = {"source": views[0][1], "destination": destination}
        view |= {"options": ["rbind", *mode]}
        _attach(root_fd, destination, open_bind(view))
        return
    context = [option for option in entry["options"] if option.startswith("context=")]
    options = ["nosuid", "nodev", "noexec", "mode=755", *context]
    tmpfs = {"type": "tmpfs", "source": "tmpfs", "destination": destination, "options": options}
    _mount(root_fd, tmpfs)
    top = linux.open_in_root(root_fd, destination, linux.O_PATH)
    for name, source in views:
        os.mkdir(name, 0o555, dir_fd=top)
        view = {"source": source, "destination": f"/{name}", "options": ["bind", *mode]}
        _attach(top, view["destination"], open_bind(view))
    if "ro" in mode:
        linux.set_mount_attributes(top, linux.MOUNT_ATTR_RDONLY)
    os.close(top)


def make_devices(root_fd: int, devices: list[dict[str, Any]]) -> None:
    """The device nodes of an OCI `linux.devices`, and the usual links. Needs umask 0.

    One with a `tree` was made before, where it is allowed to.
    """
    for device in devices:
        if "tree" in device:
            _attach(root_fd, device["path"], device["tree"])
            continue
        parent, _, name = device["path"].rpartition("/")
        directory = open_target(root_fd, parent or "/", directory=True)
        make_device(device, name, directory)
        os.close(directory)
    directory = linux.open_in_root(root_fd, "/dev", linux.O_PATH)
    for name, destination in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
        ("ptmx", "pts/ptmx"),
        ("core", "/proc/kcore"),
    ):
        if name != "core" or os.path.exists(destination):  # as runc makes it, though it is masked
            os.symlink(destination, name, dir_fd=directory)
    os.close(directory)


def make_device(device: dict[str, Any], name: str, directory: int) -> None:
    """One node of an OCI `linux.devices` as `name` in a directory."""
    kind = stat.S_IFBLK if device["type"] == "b" else stat.S_IFCHR
    number = os.makedev(device["major"], device["minor"])
    os.mknod(name, kind | device.get("fileMode", 0o666), number, dir_fd=directory)
    os.chown(name, device.get("uid", 0), device.get("gid", 0), dir_fd=directory)


def mask(root_fd: int, paths: list[str], label: str = "") -> None:
    """Hide paths: files behind /dev/null, directories behind an empty read-only tmpfs."""
    options = f"size=0k,{context_option(label)}" if label else "size=0k"
    for path in paths:
        try:
            target = linux.open_in_root(root_fd, path, linux.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            continue
        through = f"/proc/self/fd/{target}"
        if stat.S_ISDIR(os.fstat(target).st_mode):
            flags = linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
            linux.mount("tmpfs", through, "tmpfs", flags, options)
        else:
            linux.mount("/dev/null", through, "", linux.MS_BIND)
        os.close(target)


def protect(root_fd: int, paths: list[str]) -> None:
    """Make paths read-only by mounting each onto itself."""
    for path in paths:
        try:
            target = linux.open_in_root(root_fd, path, linux.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            continue
        tree = linux.open_tree(target, "", recursive=True)
        linux.set_mount_attributes(tree, linux.MOUNT_ATTR_RDONLY, recursive=True)
        linux.attach_mount(tree, target, path)
        os.close(tree)
        os.close(target)


def set_sysctls(root_fd: int, settings: dict[str, str]) -> None:
    """Write namespaced sysctls. Raises: OSError naming the key."""
    for key, value in settings.items():
        path = "/proc/sys/" + key.replace(".", "/")
        try:
            fd = linux.open_in_root(root_fd, path, os.O_WRONLY)
            os.write(fd, value.encode())
            os.close(fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"sysctl {key}={value}") from None


def enter(root_fd: int) -> None:
    """Pivot into the root and forget the host's."""
    os.fchdir(root_fd)
    linux.pivot_root_here()
    os.chdir("/")
    os.close(root_fd)


def make_read_only() -> None:
    """Make the root of an entered container read-only; its other mounts keep their mode."""
    top = os.open("/", linux.O_PATH | os.O_CLOEXEC)
    linux.set_mount_attributes(top, linux.MOUNT_ATTR_RDONLY)
    os.close(top)
