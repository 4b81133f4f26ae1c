"""The native runtime as the worker uses it: an async client of the supervisor's socket.

Holds no state of its own: whatever it knows it reads from the supervisor, so a new worker process
sees every container the old one started. Requests that change nothing are repeated after a lost
connection; `create` and `start` are answered from the container's state then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal as signals
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import structlog
from typing_extensions import override

from shoal.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from worker.runtime import bundle, checking, hosting, launch
from worker.runtime.api import (
    ContainerConfig,
    ContainerStats,
    ContainerStatus,
    Runtime,
)
from worker.runtime.confining import AppArmor
from worker.runtime.labelling import SELinux
from worker.runtime.lean import cgroups
from worker.runtime.lean.files import BUNDLE_FILE, REFUSAL_FILE, discard, read_text
from worker.runtime.link import RECONNECT_S, REQUEST_DEADLINE_S, Broken, SupervisorLink, deadline
from worker.runtime.talking import Talking, own_capabilities

_log = structlog.get_logger()
START_DEADLINE_S = 60.0
_PROBE_DEADLINE_S = 30.0
_RUN_DIR_BYTES_MAX = 80
_INIT_FILES = ("etc/hosts", "etc/hostname", "etc/resolv.conf", ".dockerenv")


class NativeRuntime(Talking, Runtime):
    """Containers through our own executor. One instance per worker; all methods are concurrent."""

    def __init__(
        self, *, state_dir: str, run_dir: str, cgroup_parent: str, selinux: bool = False
    ) -> None:
        """selinux: label containers."""
        self.state_dir = os.path.abspath(state_dir)
        self.run_dir = os.path.abspath(run_dir)
        self.cgroup_parent = "/" + cgroup_parent.strip("/")
        self.apparmor = AppArmor()
        self.selinux = SELinux(enabled=selinux)
        super().__init__(SupervisorLink(f"{self.run_dir}/supervisor.sock"), self.run_dir)

    @override
    def container_dir(self, container: str) -> str:
        """Where a container keeps its record, bundle and logs."""
        return f"{self.state_dir}/containers/{container}"

    def upper_dir(self, container: str) -> str:
        """What a container has changed of its image: the upper directory of its overlay."""
        return f"{self.container_dir(container)}/upper"

    @override
    async def ensure_running(self) -> None:
        if len(os.fsencode(self.run_dir)) > _RUN_DIR_BYTES_MAX:
            raise InvalidArgument(
                f"run directory {self.run_dir}: longer than {_RUN_DIR_BYTES_MAX} bytes, which the "
                "kernel's limit on socket paths does not allow"
            )
        launch.make_directories(self.run_dir, self.state_dir)
        await asyncio.to_thread(_make_init_layer, f"{self.state_dir}/init-layer")
        await self.apparmor.open()
        await self.selinux.open(Path(self.state_dir, "containers"))
        discard(self._refusal)  # of an earlier try: what still holds is said again
        async with deadline(_PROBE_DEADLINE_S, "supervisor: no answer"):
            while not await self._answers():
                self._check_refusal()
                # A supervisor whose keeper died is about to become the keeper: let it.
                heir = launch.is_recorded_alive(self.run_dir, "supervisor")
                if not heir and not launch.keeper_is_alive(self.run_dir):
                    await launch.spawn_keeper(self.run_dir, self.state_dir, self.cgroup_parent)
                await asyncio.sleep(RECONNECT_S)
        await asyncio.to_thread(_empty, f"{self.state_dir}/trash")

    @property
    def _refusal(self) -> str:
        return f"{self.run_dir}/{REFUSAL_FILE}"

    def _check_refusal(self) -> None:
        """Raises: FailedPrecondition with why the supervisor cannot serve, once it has told."""
        with contextlib.suppress(FileNotFoundError):
            raise FailedPrecondition(
                f"containers cannot run on this node: {read_text(self._refusal)}"
            )

    async def _answers(self) -> bool:
        try:
            await self._link.exchange("ping", {})
        except (OSError, Broken):
            return False
        return True

    @override
    async def create(self, config: ContainerConfig) -> ContainerStatus:
        known = self.selinux.knows(config.id)
        try:
            return await self._create(config.id, await self._laid_out(config))
        except BaseException:
            if not known:
                self.selinux.forget(config.id)
            raise

    @override
    async def configure(self, config: ContainerConfig) -> None:
        if (await self.status(config.id)).state == "running":
            raise FailedPrecondition(f"container {config.id} is running; stop it")
        request = await self._laid_out(config)
        await asyncio.to_thread(_replace_files, self.container_dir(config.id), request)

    async def _laid_out(self, config: ContainerConfig) -> dict[str, Any]:
        """What the container's directory is to hold. Raises: InvalidArgument, Unimplemented."""
        checking.check(config)
        signal_number(config.stop_signal)
        _warn_clamped(config)
        possible = await asyncio.to_thread(own_capabilities)
        runtime_path = await asyncio.to_thread(hosting.find_runtime, config.runtime)
        labels = await self.selinux.labels_for(config)
        await self.selinux.relabel(config.mounts, labels)
        around = bundle.Surroundings(
            container_dir=self.container_dir(config.id),
            cgroup_path=f"{self.cgroup_parent}/{config.id}",
            seccomp_program=await self._seccomp(config, possible),
            resolv_conf=_host_resolver(),
            devices=await asyncio.to_thread(hosting.find_devices, config),
            throttled=await asyncio.to_thread(hosting.block_numbers, config.throttled_devices),
            capabilities=possible,
            runtime_path=runtime_path,
            seccomp=await launch.oci_profile(
                bundle.capabilities_of(config, possible), config.seccomp_profile
            )
            if runtime_path and not bundle.unconfined(config)
            else {},
            init_path=await asyncio.to_thread(hosting.find_init, config) if config.init else "",
            apparmor_profile=await self.apparmor.profile_for(config),
            labels=labels,
        )
        layered = msgspec.structs.replace(
            config, layers=(f"{self.state_dir}/init-layer", *config.layers)
        )
        content = bundle.bundle_of(layered, around)
        content["annotations"] |= {
            "dev.shoal.stop-signal": config.stop_signal,
            "dev.shoal.stop-grace-s": str(config.stop_grace_s),
        }
        return {
            "id": config.id,
            "bundle": content,
            "labels": config.labels,
            "stdin": config.open_stdin and not config.tty,
            "files": bundle.files_of(config, around),
            "log": {
                "max_size_bytes": config.log_max_size_bytes,
                "max_files": config.log_max_files,
                **config.log,
            },
        }

    async def _create(self, container: str, request: dict[str, Any]) -> ContainerStatus:
        async with deadline(REQUEST_DEADLINE_S, "runtime: create: no answer in time"):
            while True:
                try:
                    return _status(await self._link.request("create", request))
                except Unavailable:
                    # Made by the supervisor that died, or not: the next one knows.
                    known = [s for s in await self.list() if s.id == container]
                    if known and known[0].state == "created":
                        return known[0]

    async def _seccomp(self, config: ContainerConfig, possible: int) -> str:
        if bundle.unconfined(config):
            return ""
        capabilities = bundle.capabilities_of(config, possible)
        return await launch.seccomp_program(
            self.state_dir, capabilities, profile=config.seccomp_profile
        )

    @override
    async def start(self, container: str) -> ContainerStatus:
        async with deadline(START_DEADLINE_S, f"runtime: start {container}: no answer in time"):
            while True:
                try:
                    return _status(await self._link.request("start", {"id": container}, None))
                except Unavailable:
                    # What became of it is known to the next supervisor.
                    status = await self.status(container)
                    if status.error:
                        raise FailedPrecondition(status.error) from None
                    if status.state != "created":
                        return status

    @override
    async def kill(self, container: str, signal: int) -> None:
        await self._link.request("kill", {"id": container, "signal": int(signal)})

    @override
    async def stop(self, container: str, grace_s: float | None = None) -> ContainerStatus:
        number, configured_s = await asyncio.to_thread(self._stop_rule, container)
        grace_s = configured_s if grace_s is None else grace_s
        try:
            await self.kill(container, number)
            async with asyncio.timeout(max(0.0, grace_s)):
                return await self.wait(container)
        except FailedPrecondition:
            return await self.status(container)
        except TimeoutError:
            pass
        return await self._kill_now(container)

    async def _kill_now(self, container: str) -> ContainerStatus:
        while True:
            try:
                await self.kill(container, signals.SIGKILL)
            except FailedPrecondition:
                return await self.status(container)
            except Unavailable:
                await asyncio.sleep(RECONNECT_S)
                continue
            return await self.wait(container)

    def _stop_rule(self, container: str) -> tuple[int, float]:
        try:
            with open(f"{self.container_dir(container)}/{BUNDLE_FILE}", "rb") as file:
                annotations = msgspec.json.decode(file.read())["annotations"]
        except FileNotFoundError:
            raise NotFound(f"container {container} does not exist") from None
        number = signal_number(annotations["dev.shoal.stop-signal"])
        return number, float(annotations["dev.shoal.stop-grace-s"])

    @override
    async def wait(self, container: str) -> ContainerStatus:
        while True:
            try:
                return _status(await self._link.request("wait", {"id": container}, None))
            except Unavailable:
                await asyncio.sleep(RECONNECT_S)

    @override
    async def list(self) -> list[ContainerStatus]:
        return [_status(record) for record in await self._link.request("list", {})]

    @override
    async def status(self, container: str) -> ContainerStatus:
        return _status(await self._link.request("status", {"id": container}))

    @override
    async def remove(self, container: str, *, force: bool = False) -> None:
        if force and (await self.status(container)).state == "running":
            await self._kill_now(container)
        trash = await self._remove(container)
        self.selinux.forget(container)
        if trash:
            await asyncio.to_thread(shutil.rmtree, trash, ignore_errors=True)

    async def _remove(self, container: str) -> str:
        """Directory to delete; "" when an attempt whose answer was lost has removed it."""
        again = False
        async with deadline(REQUEST_DEADLINE_S, "runtime: remove: no answer in time"):
            while True:
                try:
                    result = await self._link.request("remove", {"id": container})
                    return str(result["trash"])
                except Unavailable:
                    again = True
                    await asyncio.sleep(RECONNECT_S)
                except NotFound:
                    if again:
                        return ""
                    raise

    @override
    async def stats(self, container: str) -> ContainerStats:
        return msgspec.convert(await self._link.request("stats", {"id": container}), ContainerStats)

    @override
    async def pause(self, container: str) -> None:
        await self._link.request("pause", {"id": container, "paused": True})

    @override
    async def unpause(self, container: str) -> None:
        await self._link.request("pause", {"id": container, "paused": False})

    @override
    async def events(self) -> AsyncIterator[ContainerStatus]:
        while True:
            with contextlib.suppress(OSError):
                async for line in self._link.lines("events"):
                    for status in _event_statuses(msgspec.json.decode(line)):
                        yield status
            await asyncio.sleep(RECONNECT_S)

    @override
    async def shutdown(self) -> None:
        await self.close()
        async with deadline(REQUEST_DEADLINE_S, "keeper: it does not end"):
            while self._keeper_or_heir_lives():
                pid = launch.recorded_pid(self.run_dir, "keeper")
                if pid:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signals.SIGTERM)
                await asyncio.sleep(RECONNECT_S)
        mountinfo = await asyncio.to_thread(read_text, "/proc/self/mountinfo")
        await asyncio.to_thread(cgroups.remove_parent, self.cgroup_parent, mountinfo)

    def _keeper_or_heir_lives(self) -> bool:
        heir = launch.recorded_pid(self.run_dir, "supervisor")  # of a keeper that was killed
        return heir > 0 or launch.keeper_is_alive(self.run_dir)

    async def close(self) -> None:
        """Let go of idle connections; the processes behind the runtime go on."""
        await self._link.close()


def signal_number(name: str) -> int:
    """A signal by name (`SIGTERM`, `TERM`) or number. Raises: InvalidArgument."""
    if name.isdigit() and 0 < int(name) < 65:
        return int(name)
    full = name.upper() if name.upper().startswith("SIG") else f"SIG{name.upper()}"
    try:
        return signals.Signals[full].value
    except KeyError:
        raise InvalidArgument(f"stop_signal: unknown signal {name!r}") from None


def _status(record: dict[str, Any]) -> ContainerStatus:
    return msgspec.convert(record, ContainerStatus)


def _event_statuses(message: dict[str, Any]) -> list[ContainerStatus]:
    if "event" in message:
        return [_status(message["event"])]
    if "removed" in message:
        return [ContainerStatus(id=message["removed"], state="exited", removed=True)]
    return [_status(record) for record in message.get("result", ())]


def _replace_files(directory: str, request: dict[str, Any]) -> None:
    """What a container finds at its next start, in place of what it found at the last."""
    files = {name: (text.encode(), 0o644) for name, text in request["files"].items()}
    files[BUNDLE_FILE] = msgspec.json.encode(request["bundle"]), 0o600
    files["log.conf"] = msgspec.json.encode(request["log"]), 0o600
    for name, (content, mode) in files.items():
        temporary = f"{directory}/{name}.next"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(content)
        os.rename(temporary, f"{directory}/{name}")


def _make_init_layer(directory: str) -> None:
    """The topmost lower layer of every container: mount points, so that no start makes them."""
    for name in ("dev", "proc", "sys", "etc"):
        os.makedirs(f"{directory}/{name}", mode=0o755, exist_ok=True)
    for name in _INIT_FILES:
        with open(f"{directory}/{name}", "ab"):
            pass
    if not os.path.islink(f"{directory}/etc/mtab"):
        os.symlink("/proc/mounts", f"{directory}/etc/mtab")


def _empty(directory: str) -> None:
    for entry in os.scandir(directory):
        shutil.rmtree(entry.path, ignore_errors=True)


def _host_resolver() -> str:
    """The host's resolv.conf; read on the event loop, as it is small and always cached."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            return file.read(65536)
    except OSError:
        return ""


def _warn_clamped(config: ContainerConfig) -> None:
    import resource

    for limit in config.ulimits:
        ceiling = resource.getrlimit(getattr(resource, f"RLIMIT_{limit.name.upper()}"))[1]
        over = ceiling != resource.RLIM_INFINITY and (limit.hard == -1 or limit.hard > ceiling)
        if over and not _may_raise_limits():
            _log.warning(
                "container.limit_clamped", container=config.id, limit=limit.name, max=ceiling
            )


def _may_raise_limits() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> 24 & 1)
    return False


__all__ = ["NativeRuntime", "signal_number"]
