"""Versions of the programs the engine works with; asked once, at the start."""

from __future__ import annotations

import asyncio
import platform
import re
import shutil

from engine.facts.words import Program

ASK_S = 5.0
_ASKED = ("crun", "runc", "nft")
_VERSION = re.compile(r"v?([0-9]+\.[0-9][^\s,()]*)")


async def find_programs() -> tuple[Program, ...]:
    """Python, and which of crun, runc and nft are installed."""
    found = await asyncio.gather(*(_ask(name) for name in _ASKED if shutil.which(name)))
    return (Program("Python", platform.python_version()), *found)


async def _ask(name: str) -> Program:
    """A program that does not say its version in time has none to show."""
    process = await asyncio.create_subprocess_exec(
        name,
        "--version",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(ASK_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return Program(name, "")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    found = _VERSION.search(output.decode(errors="replace"))
    return Program(name, found[1] if found else "")
