"""What a configuration needs of the node: devices found, what the kernel lacks refused by name."""

from __future__ import annotations

import os
import shutil
import stat
import struct
from collections.abc import Iterable, Iterator

from shoal.errors import InvalidArgument, Unimplemented
from worker.runtime.api import ContainerConfig, Device
from worker.runtime.bundle import DeviceNode
from worker.runtime.interactive import ThrottledDevice

_NOT_SHOWN = frozenset(("pts", "ptmx", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts"))
_DEVICES_MAX = 4096
_INITS = ("docker-init", "tini-static", "catatonit")
_PT_INTERP = 3
_PROGRAMS = "/usr/local/bin:/usr/local/sbin:/usr/bin:/usr/sbin:/usr/libexec/docker"


def runtimes() -> dict[str, str]:
    """Programs of the OCI runtimes that are installed, by name."""
    found = {name: shutil.which(name, path=_PROGRAMS) for name in ("crun", "runc")}
    return {name: path for name, path in found.items() if path is not None}


def find_runtime(name: str) -> str:
    """The program of a runtime; "" for the native one. Raises: InvalidArgument, Unimplemented."""
    if name == "native":
        return ""
    if name not in ("crun", "runc"):
        raise InvalidArgument(f"runtime: unknown or invalid runtime name: {name}")
    path = runtimes().get(name)
    if path is None:
        raise Unimplemented(f"runtime: {name} is not installed on this node")
    return path


def find_init(config: ContainerConfig) -> str:
    """The init program to show inside. Raises: InvalidArgument, Unimplemented."""
    if config.init_path:
        if not _is_static(config.init_path):
            raise InvalidArgument(f"init_path: {config.init_path} is not a static program")
        return config.init_path
    for name in _INITS:
        path = shutil.which(name, path=_PROGRAMS)
        if path is not None and _is_static(path):
            return os.path.realpath(path)
    raise Unimplemented(
        f"init: this node has no static init program: install tini ({', '.join(_INITS)})"
    )


def _is_static(path: str) -> bool:
    """Whether it is a 64-bit ELF program that needs nothing of the node's libraries."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
        if head[:5] != b"\x7fELF\x02":
            return False
        (offset,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        kinds = [struct.unpack_from("<I", head, offset + n * size)[0] for n in range(count)]
    except (OSError, struct.error):
        return False
    return _PT_INTERP not in kinds


def find_devices(config: ContainerConfig) -> tuple[DeviceNode, ...]:
    """The nodes to show: those asked for, and of a privileged container all of the node.

    Raises: InvalidArgument.
    """
    every = Device("/dev", "/dev") if config.privileged else None
    found = {node.path: node for node in _below(every)} if every else {}
    for device in config.devices:
        found |= {node.path: node for node in _asked_for(device)}
    return tuple(found.values())


def _asked_for(device: Device) -> Iterable[DeviceNode]:
    try:
        status = os.stat(device.host_path)
    except OSError as error:
        raise InvalidArgument(f"devices: {device.host_path}: {error.strerror}") from None
    if stat.S_ISDIR(status.st_mode):
        return _below(device)
    node = _node(device.container_path, status, device.permissions)
    if node is None:
        raise InvalidArgument(f"devices: {device.host_path} is not a device")
    return (node,)


def _below(device: Device) -> Iterator[DeviceNode]:
    """Every device below a directory, by its own path there."""
    count = 0
    for directory, names, files in os.walk(device.host_path):
        names[:] = sorted(set(names) - _NOT_SHOWN)
        for name in sorted(set(files) - _NOT_SHOWN):
            path = os.path.join(directory, name)
            inside = device.container_path + path[len(device.host_path) :]
            node = _node(inside, os.lstat(path), device.permissions)
            if node is not None and (count := count + 1) <= _DEVICES_MAX:
                yield node


def _node(path: str, status: os.stat_result, permissions: str) -> DeviceNode | None:
    if not (stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode)):
        return None
    return DeviceNode(
        path=path,
        kind="b" if stat.S_ISBLK(status.st_mode) else "c",
        major=os.major(status.st_rdev),
        minor=os.minor(status.st_rdev),
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        permissions=permissions,
    )


def block_numbers(devices: tuple[ThrottledDevice, ...]) -> tuple[tuple[int, int], ...]:
    """Major and minor of each. Raises: InvalidArgument."""
    numbers = []
    for device in devices:
        try:
            status = os.stat(device.host_path)
        except OSError as error:
            raise InvalidArgument(
                f"throttled_devices: {device.host_path}: {error.strerror}"
            ) from None
        if not stat.S_ISBLK(status.st_mode):
            raise InvalidArgument(f"throttled_devices: {device.host_path} is not a block device")
        numbers.append((os.major(status.st_rdev), os.minor(status.st_rdev)))
    return tuple(numbers)
