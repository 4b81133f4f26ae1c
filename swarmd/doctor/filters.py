"""Reads the packet filters of this node's network namespace, whoever made them.

Changes nothing, and waits for no program longer than a deadline. Our own tables are not asked for:
their maps may hold tens of thousands of elements. Refuses nothing: a program that is missing or
fails has nothing to say, and the doctor says that it did not look.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Final

import msgspec

from swarmd.doctor.firewall import Table
from swarmd.doctor.rulesets import OURS, from_iptables, from_nft, is_over_nft, members_of

_PATH: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_DEADLINE_S: Final = 10.0
_TABLES_MAX: Final = 128
_LEGACY: Final = {
    "iptables-legacy": Path("/proc/thread-self/net/ip_tables_names"),
    "ip6tables-legacy": Path("/proc/thread-self/net/ip6_tables_names"),
}
"""Programs whose tables nft does not show, and where the kernel names those there are."""
_LOCAL_TABLE, _LOCAL_BRIDGES = "shoal_local", "bridges"


class Filters(msgspec.Struct, frozen=True):
    """unread: what could not be read, and why. bridges: of this node's own networks."""

    tables: tuple[Table, ...] = ()
    bridges: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


async def read_filters() -> Filters:
    """Every table of others that may drop packets."""
    tables: list[Table] = []
    unread: list[str] = []
    over_nft: set[str] = set()
    legacy: set[str] = set()
    for tool in _iptables():
        family = "ip6" if tool.startswith("ip6") else "ip"
        if family in legacy:
            continue  # `iptables` is what it was asked as
        try:
            text = await _run(f"{tool}-save")
        except _Failed as failed:
            unread.append(str(failed))
            continue
        tables += from_iptables(text, tool)
        if text:
            (over_nft if is_over_nft(text) else legacy).add(family)
    objects: list[Any] = []
    try:
        for family, name in await _nft_tables():
            if not name.startswith(OURS):
                objects += await _nft("list", "table", family, name)
    except _Failed as failed:
        unread.append(str(failed))
    tables += from_nft(objects, frozenset(over_nft))
    return Filters(tuple(tables), await _bridges(), tuple(unread))


class _Failed(Exception):
    """A program could not be run, failed, or took too long."""


async def _nft_tables() -> list[tuple[str, str]]:
    found = [entry["table"] for entry in await _nft("list", "tables") if "table" in entry]
    if len(found) > _TABLES_MAX:
        raise _Failed(f"nft: {len(found)} tables, at most {_TABLES_MAX} are looked at")
    return [(table["family"], table["name"]) for table in found]


async def _bridges() -> tuple[str, ...]:
    with contextlib.suppress(_Failed):  # without such networks there is no such table
        found = await _nft("list", "set", "inet", _LOCAL_TABLE, _LOCAL_BRIDGES)
        return members_of(found, _LOCAL_TABLE, _LOCAL_BRIDGES)
    return ()


def _iptables() -> list[str]:
    """The variants with tables of their own here. Asking a legacy one does not make any."""
    found = [tool for tool in ("iptables", "ip6tables") if _which(f"{tool}-save")]
    for tool, names in _LEGACY.items():
        with contextlib.suppress(OSError):
            if names.read_text().strip() and _which(f"{tool}-save"):
                found.append(tool)
    return found


async def _nft(*words: str) -> list[Any]:
    try:
        found = json.loads(await _run("nft", "--json", *words))
    except ValueError as error:
        raise _Failed(f"nft {' '.join(words)}: {error}") from error
    return list(found.get("nftables", ()))


async def _run(program: str, *words: str) -> str:
    """What it printed. Raises: _Failed."""
    try:
        process = await asyncio.create_subprocess_exec(
            program, *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, env={**os.environ, "PATH": _PATH},
        )  # fmt: skip
    except OSError as error:
        raise _Failed(f"{program}: {error.strerror}") from error
    try:
        async with asyncio.timeout(_DEADLINE_S):
            printed, complaint = await process.communicate()
    except TimeoutError as error:
        raise _Failed(f"{program}: no end after {_DEADLINE_S:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        said = complaint.decode(errors="replace").strip().partition("\n")[0]
        raise _Failed(f"{program} {' '.join(words)}: {said or process.returncode}")
    return printed.decode(errors="replace")


def _which(program: str) -> bool:
    return shutil.which(program, path=_PATH) is not None
