"""The files that came with a call: unpacked into a private directory, gone with the build."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from e2b_dockerfile_utils import PatternMatcher

from engine.build.language import TEXT_BYTES_MAX
from shoal.errors import InvalidArgument, NotFound
from worker.files.jobs import TreePlace
from worker.files.service import Files

_IGNORE_FILE = ".dockerignore"


class Contexts:
    """One per node. root: where contexts lie while their builds run."""

    def __init__(self, root: Path, files: Files) -> None:
        self._root = root
        self._files = files

    def open(self) -> None:
        """Remove what a crash has left. Blocking. Raises: OSError."""
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir(mode=0o700, parents=True)

    @asynccontextmanager
    async def received(self, tar: AsyncIterable[bytes]) -> AsyncIterator[TreePlace]:
        """The tree of a tar, packed in any way. Raises: InvalidArgument, ResourceExhausted."""
        directory = await asyncio.to_thread(tempfile.mkdtemp, prefix="context-", dir=self._root)
        try:
            tree = Path(directory) / "tree"
            await asyncio.to_thread(tree.mkdir)
            place = TreePlace(os.fspath(tree))
            await self._files.write(place, "/", tar)
            yield place
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True))

    @asynccontextmanager
    async def scratch(self) -> AsyncIterator[Path]:
        """An empty directory, gone afterwards. Raises: OSError."""
        made = await asyncio.to_thread(tempfile.mkdtemp, prefix="fetched-", dir=self._root)
        try:
            yield Path(made)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, made, ignore_errors=True))

    async def dockerfile(self, place: TreePlace, path: str) -> bytes:
        """The text of the build's Dockerfile; what `.dockerignore` hides of the two is removed.

        Raises: InvalidArgument.
        """
        try:
            content = await self._files.content(place, path, TEXT_BYTES_MAX)
        except NotFound:
            raise InvalidArgument(f"Cannot locate specified Dockerfile: {path}") from None
        try:
            ignored = await self._files.content(place, _IGNORE_FILE, TEXT_BYTES_MAX)
        except NotFound:
            return content
        await asyncio.to_thread(_hide, place.directory, path, ignored.decode("utf-8", "replace"))
        return content


def _hide(directory: str, dockerfile: str, text: str) -> None:
    """The client has left out all else: these two it must send."""
    lines = (line.strip() for line in text.splitlines())
    patterns = [line.lstrip("/") for line in lines if line and not line.startswith("#")]
    try:
        matcher = PatternMatcher(patterns)
    except ValueError as error:
        raise InvalidArgument(f"{_IGNORE_FILE}: {error}") from None
    for name in (dockerfile.strip("/"), _IGNORE_FILE):
        if "/" not in name and matcher.matches(name):
            (Path(directory) / name).unlink(missing_ok=True)
