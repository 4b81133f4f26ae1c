"""AppArmor on this node: whether the kernel has it, and our profile in the kernel.

The profile is replaced when the worker starts, so that it is this version's, and loaded again
before a container that needs it when somebody has unloaded it. Where AppArmor is on and there is
no `apparmor_parser`, containers run without a profile, as with dockerd, and `warning` says so;
where the parser refuses, containers that need the profile are refused.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import structlog

from shoal.errors import FailedPrecondition, Unimplemented
from worker.runtime.api import ContainerConfig
from worker.runtime.apparmor import DEFAULT, UNCONFINED, profile_of, text_of

_PARSE_DEADLINE_S = 30.0
_SBIN = "/usr/sbin:/sbin:/usr/bin:/bin"

_log = structlog.get_logger()


class AppArmor:
    """One per runtime. root: where to find sys and proc."""

    def __init__(self, root: Path = Path("/"), path: str = _SBIN) -> None:
        self._root = root
        self._path = path
        self._loading = asyncio.Lock()
        self.enabled = _text(root / "sys/module/apparmor/parameters/enabled")[:1] == "Y"
        self.warning = ""
        """Why containers have no profile although the kernel could give them one; or ""."""

    async def open(self) -> None:
        """Put this version's profile into the kernel; a failure is logged and kept as `warning`."""
        if not self.enabled:
            return
        try:
            await self._load()
        except FailedPrecondition as error:
            _log.warning("apparmor.no_profile", reason=error.message)
            self.warning = error.message

    @property
    def confines(self) -> bool:
        """Whether containers get the default profile."""
        return self.enabled and (self._parser() is not None or self._is_loaded())

    async def profile_for(self, config: ContainerConfig) -> str:
        """What a container runs under; "" where the kernel knows no profiles.

        Raises: Unimplemented for a profile on such a node, FailedPrecondition when the default one
        cannot be loaded.
        """
        if not self.enabled:
            if config.apparmor_profile not in ("", UNCONFINED):
                raise Unimplemented(
                    "apparmor_profile: AppArmor is not enabled on this node, but the profile "
                    f"{config.apparmor_profile!r} was specified"
                )
            return ""
        profile = profile_of(config)
        if profile != DEFAULT or await asyncio.to_thread(self._is_loaded):
            return profile
        if self._parser() is None and not config.apparmor_profile:
            return ""
        async with self._loading:
            if not await asyncio.to_thread(self._is_loaded):
                await self._load()
        return profile

    async def _load(self) -> None:
        parser = self._parser()
        if parser is None:
            raise FailedPrecondition(
                f"AppArmor is enabled, but the profile {DEFAULT} cannot be loaded: there is no "
                "apparmor_parser; install apparmor"
            )
        own = _text(self._root / "proc/self/attr/current").partition(" (")[0] or UNCONFINED
        process = await asyncio.create_subprocess_exec(
            parser, "--replace", "--skip-cache", "--quiet",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(_PARSE_DEADLINE_S):
                _, complaint = await process.communicate(text_of(own).encode())
        except TimeoutError:
            process.kill()
            await process.wait()
            complaint = b"apparmor_parser does not end"
        if process.returncode:
            raise FailedPrecondition(
                f"AppArmor is enabled, but the profile {DEFAULT} could not be loaded: "
                f"{complaint.decode(errors='replace').strip()[-500:]}"
            )
        self.warning = ""
        _log.info("apparmor.loaded", profile=DEFAULT)

    def _parser(self) -> str | None:
        return shutil.which("apparmor_parser", path=self._path)

    def _is_loaded(self) -> bool:
        lines = _text(self._root / "sys/kernel/security/apparmor/profiles").splitlines()
        return any(line.startswith(f"{DEFAULT} (") for line in lines)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\n\0 ")
    except OSError:
        return ""
