"""The volumes of the node: Docker's local driver.

Implements `worker.volumes.api.Volumes`. Who uses a volume is asked of those who keep records of
containers; what this process adds is only who is about to start. A volume with options is mounted
in its own directory from its first running user to its last. A path within a volume is handed on
as a mount of its own (`ways`).
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import os
import secrets
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import structlog

from shoal.clock import Clock
from shoal.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    SwarmError,
)
from worker.volumes import kernel
from worker.volumes import options as words
from worker.volumes.api import Volume, VolumeMount, VolumeUsers
from worker.volumes.copying import Filling
from worker.volumes.records import VolumeFiles, check_unmounted
from worker.volumes.ways import Ways

DRIVER = "local"
MOUNT_DEADLINE_S = 60.0
MOUNTS_AT_ONCE = 4
_BLOCK_BYTES = 512

_log = structlog.get_logger()
_T = TypeVar("_T")


class LocalVolumes:
    """Made by `open`; close it."""

    def __init__(self, files: VolumeFiles, ways: Ways, clock: Clock) -> None:
        self._files = files
        self._ways = ways
        self._clock = clock
        self._volumes: dict[str, Volume] = {}
        self._damaged: frozenset[str] = frozenset()
        self._users: list[VolumeUsers] = []
        self._running: list[VolumeUsers] = []
        self._held: dict[str, set[str]] = {}
        self._led: dict[tuple[str, str, str], str] = {}
        self._gates: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        # Of their own: a server that does not answer must not take the threads of everything else.
        self._threads = ThreadPoolExecutor(MOUNTS_AT_ONCE, thread_name_prefix="volume-mount")

    @classmethod
    async def open(cls, root: Path, ways: Path, clock: Clock) -> LocalVolumes:
        """Read what is there, and clear away what a crash left. Raises: OSError.

        ways: a directory for the mounts that lead to paths within volumes.
        """
        volumes = cls(VolumeFiles(root), Ways(ways), clock)
        await asyncio.to_thread(volumes._ways.open)
        volumes._volumes, volumes._damaged = await asyncio.to_thread(volumes._files.open)
        return volumes

    def close(self) -> None:
        """Let go of the threads; what is mounted stays mounted."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def add_users(self, users: VolumeUsers, running: VolumeUsers) -> None:
        """Somebody more who keeps records of containers: of all of them, and of those that run."""
        self._users.append(users)
        self._running.append(running)

    async def settle(self) -> None:
        """Unmount what was mounted for containers that have ended while nobody looked."""
        mounted = await asyncio.to_thread(kernel.mount_points)
        for volume in self.list():
            if volume.options and _place(volume) in mounted:
                try:
                    await self.unmount(volume.name, "")
                except SwarmError as error:
                    _log.warning("volume.mount_kept", volume=volume.name, reason=str(error))

    async def create(
        self,
        name: str = "",
        *,
        driver: str = DRIVER,
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make it, or find it. Raises: InvalidArgument, NotFound, AlreadyExists."""
        anonymous = not name
        name = words.check_name(name) if name else secrets.token_hex(32)
        if driver != DRIVER:
            raise NotFound(
                f"create {name}: error looking up volume plugin {driver}: plugin"
                f' "{driver}" not found'
            )
        words.mount_plan(name, options or {})
        async with self._gate(name):
            if name in self._damaged:
                raise FailedPrecondition(
                    f"create {name}: its directory {self._files.directory(name)} is there, but its"
                    " record cannot be read: move the directory away"
                )
            known = self._volumes.get(name)
            if known is not None:
                if options and dict(options) != known.options:
                    raise AlreadyExists(f"create {name}: the volume has other options: remove it")
                return known
            volume = Volume(
                name=name,
                mountpoint=self._files.data(name),
                created_at_ns=self._clock.now_ns(),
                labels=dict(labels or {}),
                options=dict(options or {}),
                anonymous=anonymous,
            )
            await self._on_disk(f"create {name}", lambda: self._files.make(volume))
            self._volumes[name] = volume
            return volume

    def list(self) -> tuple[Volume, ...]:
        """Every volume, by name."""
        return tuple(volume for _, volume in sorted(self._volumes.items()))

    def get(self, name: str) -> Volume:
        """One volume. Raises: NotFound."""
        volume = self._volumes.get(name)
        if volume is None:
            raise NotFound(f"get {name}: no such volume")
        return volume

    async def remove(self, name: str, *, force: bool = False, user: str = "") -> None:
        """Remove it and its data. Raises: NotFound, FailedPrecondition."""
        async with self._gate(name):
            if name not in self._volumes and force:
                return
            volume = self.get(name)
            users = await self._users_of(name, self._users) - {user}
            if users:
                raise FailedPrecondition(
                    f"remove {name}: volume is in use - [{', '.join(sorted(users))}]"
                )
            await self._let_go(name, user)
            await self._unmount(volume)
            gone = await self._on_disk(f"remove {name}", lambda: self._taken_away(name))
            del self._volumes[name]
        await asyncio.to_thread(self._files.discard, gone)

    async def mount(
        self, name: str, container: str, *, subpath: str = "", copy_from: str = ""
    ) -> VolumeMount:
        """Make it reachable. Raises: NotFound, InvalidArgument, FailedPrecondition."""
        words.check_subpath(subpath)
        async with self._gate(name):
            volume = self.get(name)
            self._held.setdefault(name, set()).add(container)
            try:
                await self._mount(volume)
                await self._on_disk(f"fill {name}", lambda: self._fill(volume, copy_from))
                source = volume.mountpoint
                if subpath:
                    source = await self._way_to(volume, container, subpath)
            except BaseException:
                await self._let_go(name, container)
                raise
        return VolumeMount(volume=name, source=source)

    async def unmount(self, name: str, container: str) -> bool:
        """The container no longer needs it. Raises: FailedPrecondition."""
        async with self._gate(name):
            held = container in self._held.get(name, ())
            await self._let_go(name, container)
            volume = self._volumes.get(name)
            if volume is None or not volume.options:
                return held
            if not await self._users_of(name, self._running) - {container}:
                await self._unmount(volume)
            return held

    async def users(self) -> Mapping[str, frozenset[str]]:
        """Who uses what, by volume: what `remove` would ask of each. Raises: as the sources do."""
        return await self._asked(self._users)

    async def size_bytes(self, name: str) -> int:
        """Disk space its content takes. Raises: NotFound."""
        return await asyncio.to_thread(_tree_bytes, self.get(name).mountpoint)

    async def _users_of(self, name: str, sources: builtins.list[VolumeUsers]) -> frozenset[str]:
        return (await self._asked(sources)).get(name, frozenset())

    async def _asked(self, sources: builtins.list[VolumeUsers]) -> dict[str, frozenset[str]]:
        found = {name: frozenset(holders) for name, holders in self._held.items()}
        for source in sources:
            for name, users in (await source()).items():
                found[name] = found.get(name, frozenset()) | users
        return found

    async def _let_go(self, name: str, container: str) -> None:
        for key in [key for key in self._led if key[:2] == (name, container)]:
            place = self._led[key]
            await self._on_disk(f"volume {name}", partial(self._ways.close, place))
            del self._led[key]
        holders = self._held.get(name, set())
        holders.discard(container)
        if not holders:
            self._held.pop(name, None)

    def _taken_away(self, name: str) -> Path:
        check_unmounted(Path(self._files.directory(name)))
        return self._files.take_away(name)

    async def _mount(self, volume: Volume) -> None:
        plan = words.mount_plan(volume.name, volume.options)
        if plan is None or _place(volume) in await asyncio.to_thread(kernel.mount_points):
            return
        await self._in_time(plan.text(volume.mountpoint), lambda: _mount(volume, plan))

    async def _unmount(self, volume: Volume) -> None:
        if not volume.options or _place(volume) not in await asyncio.to_thread(kernel.mount_points):
            return
        await self._in_time(f"umount {volume.mountpoint}", lambda: kernel.umount(volume.mountpoint))

    def _fill(self, volume: Volume, source: str) -> None:
        target = os.open(volume.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        aside = target
        try:
            if not volume.options:
                directory = self._files.directory(volume.name)
                aside = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            filling = Filling(target, aside)
            if source:
                filling.fill(source)
            else:
                filling.recover()
        finally:
            for fd in {target, aside}:
                os.close(fd)

    async def _way_to(self, volume: Volume, container: str, subpath: str) -> str:
        """A path that leads to what is at `subpath` now, whatever will be there later."""
        key = (volume.name, container, subpath)
        if key not in self._led:
            self._led[key] = await self._on_disk(
                f"volume {volume.name}: subpath {subpath}",
                lambda: self._ways.lead(volume.name, volume.mountpoint, subpath),
            )
        return self._led[key]

    async def _in_time(self, what: str, act: Callable[[], Any]) -> None:
        """Run in a thread of our own. Raises: FailedPrecondition, DeadlineExceeded."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(MOUNT_DEADLINE_S):
                await loop.run_in_executor(self._threads, act)
        except TimeoutError:
            raise DeadlineExceeded(f"{what}: no answer within {MOUNT_DEADLINE_S:.0f} s") from None
        except OSError as error:
            raise FailedPrecondition(f"{what}: {(error.strerror or '').lower()}") from None

    async def _on_disk(self, what: str, act: Callable[[], _T]) -> _T:
        try:
            return await _finished(act)
        except OSError as error:
            text = f"{what}: {error.filename or ''}: {error.strerror}"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise (ResourceExhausted if full else FailedPrecondition)(text) from None

    def _gate(self, name: str) -> asyncio.Lock:
        """One change of a volume at a time."""
        return self._gates.setdefault(name, asyncio.Lock())


async def _finished(act: Callable[[], _T]) -> _T:
    """In a thread; who gives up waits for its end: the next change of the volume must not meet it.

    Raises: as the act.
    """
    work = asyncio.ensure_future(asyncio.to_thread(act))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        if not work.cancelled():
            work.exception()  # nobody is there to hear of it
        raise


def _place(volume: Volume) -> str:
    return os.path.realpath(volume.mountpoint)


def _mount(volume: Volume, plan: words.MountPlan) -> None:
    data = plan.data
    try:
        if plan.address:
            data = data.replace(f"addr={plan.address}", f"addr={_number_of(plan.address)}")
        _mount_all(volume.mountpoint, plan, data)
    except OSError as error:
        hint = ""
        if error.errno == errno.ENODEV:
            hint = f" (the kernel has no file system {plan.kind}: load its module)"
        raise FailedPrecondition(
            f"error while mounting volume '{volume.mountpoint}': failed to mount local volume:"
            f" {plan.text(volume.mountpoint)}: {(error.strerror or '').lower()}{hint}"
        ) from None


def _mount_all(target: str, plan: words.MountPlan, data: str) -> None:
    """The mount; then what mount(2) wants said in calls of their own."""
    kernel.mount(plan.device, target, plan.kind, plan.flags, data)
    try:
        if plan.propagation:
            kernel.mount("", target, "", plan.propagation, "")
        if plan.flags & kernel.MS_BIND and plan.flags & kernel.MS_RDONLY:
            kernel.mount("", target, "", plan.flags | kernel.MS_REMOUNT, data)
    except OSError:
        kernel.umount(target)
        raise


def _number_of(host: str) -> str:
    """Raises: OSError: the name is not known."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except socket.gaierror as error:
        raise OSError(errno.EHOSTUNREACH, f"error resolving {host}: {error.strerror}") from None


def _tree_bytes(directory: str) -> int:
    """What has several names is counted once, what vanishes meanwhile not at all."""
    total, seen = 0, set()
    for parent, _, names in os.walk(directory):
        for name in names:
            try:
                status = os.lstat(f"{parent}/{name}")
            except OSError:
                continue
            key = (status.st_dev, status.st_ino)
            if status.st_nlink == 1 or key not in seen:
                total += status.st_blocks * _BLOCK_BYTES
            if status.st_nlink > 1:
                seen.add(key)
    return total
