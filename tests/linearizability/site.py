"""A lab of managers for this test: raised, broken, mended and taken down by `swarmctl lab`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

COMMAND_TIMEOUT_S = 120.0


class Site:
    """One lab with managers m1, m2, ...; every method is what a user would type."""

    def __init__(self, base: Path, managers: int) -> None:
        self.base = base
        self.name = f"lin{secrets.token_hex(4)}"
        self.nodes = tuple(f"m{number}" for number in range(1, managers + 1))
        self._environment = {
            **os.environ,
            "SHOAL_CONFIG_DIR": str(base / "config"),
            "SHOAL_LAB_DIR": str(base),
            "NO_COLOR": "1",
        }

    def directory(self, node: str) -> Path:
        """What the node keeps."""
        return self.base / self.name / node

    def socket(self, node: str) -> str:
        """Path of the node's own swarmd."""
        return str(self.directory(node) / "run" / "swarmd.sock")

    async def up(self) -> None:
        """Raise it; returns when all nodes are ready."""
        await self.lab("up", "--managers", str(len(self.nodes)), "--workers", "0")

    async def down(self) -> None:
        """Take it down."""
        await self.lab("down")

    async def lab(self, verb: str, *words: str) -> str:
        """`swarmctl lab VERB`. Result: what it printed. Raises: AssertionError."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "swarmctl", "lab", verb, "--name", self.name, *words,
            env=self._environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                printed, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0, f"lab {verb} {' '.join(words)}: {complaint.decode()}"
        return printed.decode()

    def kill_manager(self, node: str) -> None:
        """SIGKILL the node's manager process; its swarmd starts another one."""
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            pid = int((self.directory(node) / "run" / "manager.pid").read_text().split()[0])
            if b"-m\0manager\0" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def a_site(managers: int) -> AsyncIterator[Site]:
    """A lab that is up; nothing of it is left afterwards."""
    base = Path(tempfile.mkdtemp(prefix="sl-"))
    site = Site(base, managers)
    try:
        await site.up()
        yield site
    finally:
        await site.down()
        shutil.rmtree(base, ignore_errors=True)
