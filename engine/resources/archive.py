"""`/containers/{id}/archive` and its kin: files in and out, the whole root, what has changed.

`/commit` is here, too: an image of what has changed.
"""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterable

import msgspec

from engine.containers.commit import Commits, CommitWish
from engine.containers.files import ContainerFiles
from engine.containers.inspect import time_text
from engine.containers.requests import CreateRequest
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.routing import Route
from shoal.clock import NS_PER_S
from shoal.errors import InvalidArgument
from worker.files.changes import ADDED, DELETED, MODIFIED
from worker.files.jobs import Found
from worker.files.service import Reading

_LATEST_S = 60_000_000_000
STAT_HEADER = "X-Docker-Container-Path-Stat"
_KINDS = {MODIFIED: 0, ADDED: 1, DELETED: 2}
_GO_KINDS = {
    stat.S_IFDIR: 1 << 31,
    stat.S_IFLNK: 1 << 27,
    stat.S_IFBLK: 1 << 26,
    stat.S_IFCHR: 1 << 26 | 1 << 21,
    stat.S_IFIFO: 1 << 25,
    stat.S_IFSOCK: 1 << 24,
}
_GO_BITS = {stat.S_ISUID: 1 << 23, stat.S_ISGID: 1 << 22, stat.S_ISVTX: 1 << 20}


def routes(files: ContainerFiles, commits: Commits) -> Iterable[Route]:
    """Six operations."""
    resource = _Resource(files, commits)
    yield Route("HEAD", "/containers/{id}/archive", resource.stat)
    yield Route("GET", "/containers/{id}/archive", resource.read, follows_client=True)
    yield Route("PUT", "/containers/{id}/archive", resource.write)
    yield Route("GET", "/containers/{id}/export", resource.export, follows_client=True)
    yield Route("GET", "/containers/{id}/changes", resource.changes)
    yield Route("POST", "/commit", resource.commit)


class _Resource:
    def __init__(self, files: ContainerFiles, commits: Commits) -> None:
        self._files = files
        self._commits = commits

    async def stat(self, call: Call) -> Answer:
        found = await self._files.stat(call.path["id"], _path(call))
        return empty(200, {STAT_HEADER: encode_stat(found)})

    async def read(self, call: Call) -> Answer:
        async with self._files.read(call.path["id"], _path(call)) as reading:
            headers = {STAT_HEADER: encode_stat(reading.found)}
            return await _sent(call, reading, "application/x-tar", headers)

    async def write(self, call: Call) -> Answer:
        query = call.query
        await self._files.write(
            call.path["id"],
            _path(call),
            call.chunks(),
            keep_kinds=query.flag("noOverwriteDirNonDir"),
            as_user=query.flag("copyUIDGID"),
        )
        return empty(200)

    async def export(self, call: Call) -> Answer:
        async with self._files.export(call.path["id"]) as reading:
            return await _sent(call, reading, "application/octet-stream", {})

    async def changes(self, call: Call) -> Answer:
        changes = await self._files.changes(call.path["id"])
        words = [{"Path": path, "Kind": _KINDS[kind]} for kind, path in changes]
        return json_answer(words or None)

    async def commit(self, call: Call) -> Answer:
        query = call.query
        repository, tag = query.text("repo"), query.text("tag")
        wish = CommitWish(
            config=await call.body(CreateRequest, optional=True),
            name=f"{repository}:{tag}" if repository and tag else repository,
            comment=query.text("comment"),
            author=query.text("author"),
            changes=tuple(
                line for text in query.many("changes") for line in text.split("\n") if line
            ),
            pause=query.flag("pause", default=True),
        )
        image = await self._commits.commit(query.text("container"), wish)
        return json_answer({"Id": image.id}, 201)


async def _sent(call: Call, reading: Reading, kind: str, headers: dict[str, str]) -> Answer:
    async with call.stream(kind, headers) as out:
        async for piece in reading.pieces():
            await out.write(piece)
    return out.answer


def encode_stat(found: Found) -> str:
    """What is at a path, as the header says it."""
    words = {
        "name": found.name,
        "size": found.size,
        "mode": go_mode(found.mode),
        "mtime": _mtime_text(found.mtime_ns),
        "linkTarget": found.link,
    }
    return base64.b64encode(msgspec.json.encode(words)).decode()


def go_mode(mode: int) -> int:
    """A mode as Go's `os.FileMode` has it."""
    bits = sum(go for unix, go in _GO_BITS.items() if mode & unix)
    return _GO_KINDS.get(stat.S_IFMT(mode), 0) | bits | mode & 0o777


def _mtime_text(moment_ns: int) -> str:
    """Any time a file can have, within the years that have a text."""
    latest_ns = _LATEST_S * NS_PER_S
    moment_ns = max(-latest_ns, min(moment_ns, latest_ns))
    return time_text(moment_ns) if moment_ns else "1970-01-01T00:00:00Z"


def _path(call: Call) -> str:
    path = call.query.text("path")
    if not path:
        raise InvalidArgument("bad parameter: path cannot be empty")
    return path
