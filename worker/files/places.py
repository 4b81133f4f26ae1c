"""The root of a container, in a mount namespace of this process alone.

What is seen there is the container's own root and the mounts it was given: neither its `/proc`,
`/sys` and `/dev`, nor what it has mounted itself. Every path inside is followed with
`openat2(RESOLVE_IN_ROOT)`. The process does not change its root: code it loads late must never be
the container's (CVE-2019-14271). Everything is gone with the process, however it ends.
"""

from __future__ import annotations

import os

from worker.files.jobs import Bind, LivePlace, Place, RestPlace, TreePlace
from worker.runtime.lean import linux, rootfs
from worker.runtime.lean.child import become_root


def open_root(place: Place) -> int:
    """A descriptor of the root. Raises: OSError."""
    if isinstance(place, LivePlace):
        return _open_live(place)
    if isinstance(place, TreePlace):
        return os.open(place.directory, linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return _open_at_rest(place)


def _open_live(place: LivePlace) -> int:
    root = _show_live(place)
    _share_ids(place.namespace_fd)
    return root


def _share_ids(namespace_fd: int) -> None:
    """Be the root of the container's user namespace, if it has one: ids mean there what they say.

    Last: from here on nothing can be mounted, and only the container's files be changed.
    """
    owner = linux.user_namespace_of(namespace_fd)
    own = os.stat("/proc/self/ns/user")
    if os.path.samestat(os.fstat(owner), own):
        os.close(owner)
        return
    linux.setns(owner, linux.CLONE_NEWUSER)
    os.close(owner)
    become_root()


def _show_live(place: LivePlace) -> int:
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    linux.setns(place.namespace_fd, linux.CLONE_NEWNS)
    inside = os.open("/", linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    trees = [("/", linux.open_tree(inside, "", recursive=False))]
    for target in place.targets:
        tree = _tree_at(inside, target)
        if tree >= 0:
            trees.append((target, tree))
    linux.setns(home, linux.CLONE_NEWNS)
    os.close(inside)
    os.close(home)
    _leave_host()
    shown = f"{place.directory}/rootfs"
    _, root_tree = trees[0]
    below = os.open(shown, linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    linux.attach_mount(root_tree, below, shown)
    os.close(below)
    root = os.open(shown, linux.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for target, tree in trees[1:]:
        _attach(root, target, tree)
    os.close(root_tree)
    return root


def _tree_at(inside: int, target: str) -> int:
    """A copy of what is mounted at a place; -1 when it was unmounted there."""
    try:
        fd = linux.open_in_root(inside, target, linux.O_PATH)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    try:
        return linux.open_tree(fd, "", recursive=True)
    finally:
        os.close(fd)


def _open_at_rest(place: RestPlace) -> int:
    _leave_host()
    root = rootfs.mount_overlay(list(place.layers), place.directory)
    for bind in place.binds:
        _bind(root, bind)
    if place.read_only:
        linux.set_mount_attributes(root, linux.MOUNT_ATTR_RDONLY)
    return root


def _bind(root: int, bind: Bind) -> None:
    tree = linux.open_tree(linux.AT_FDCWD, bind.source, recursive=bind.recursive)
    attributes = linux.MOUNT_ATTR_RDONLY if bind.read_only else 0
    linux.set_mount_attributes(
        tree, attributes, propagation=linux.MS_PRIVATE, recursive=bind.recursive
    )
    is_directory = os.path.isdir(f"/proc/self/fd/{tree}")
    os.close(rootfs.open_target(root, bind.target, directory=is_directory))
    _attach(root, bind.target, tree)


def _attach(root: int, target: str, tree: int) -> None:
    below = linux.open_in_root(root, target, linux.O_PATH)
    linux.attach_mount(tree, below, target)
    os.close(below)
    os.close(tree)


def _leave_host() -> None:
    """A mount namespace of our own: nothing mounted in it is seen outside."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("", "/", "", linux.MS_REC | linux.MS_PRIVATE)
