"""Secrets and configs of this node's tasks: in memory, and in a tmpfs per task.

Invariant: their content is on no disk. What the managers deliver is kept in this process; a task's
files are made in a tmpfs of its own before its container, bound into that one by one, read-only,
and gone with the container's end. The tmpfs outlives this process as the container does. It is
bounded by what it holds, and not swapped out where the kernel knows how (Linux 6.4). Refused: a
task whose content has not arrived (it waits), or names ids that its user namespace does not have.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

import structlog

from shoal.aio.threads import in_thread
from shoal.errors import InvalidArgument, Unavailable
from shoal.ids import is_id
from shoal.model.files import LIVE_DIRS, FileRow, file_ids, files_of, live_path, size_max
from shoal.model.objects import Config, Secret, Task
from shoal.model.templates import GOLANG
from shoal.model.types import FileReference
from worker.agent import tmpfs
from worker.agent.templates import NodeFacts, expand, expand_content
from worker.agent.tmpfs import File
from worker.runtime.api import IdMap, IdRange, Mount

_log = structlog.get_logger()


FileKey = tuple[type[FileRow], str]
"""Kind and id of a secret or config."""


class Contents:
    """What the managers have delivered; forgotten when they say so, or with the process."""

    def __init__(self) -> None:
        self._rows: dict[FileKey, FileRow] = {}

    def deliver(self, rows: Iterable[FileRow]) -> None:
        """These may be used by tasks from now on."""
        self._rows.update(((type(row), row.id), row) for row in rows)

    def withdraw(self, keys: Iterable[FileKey]) -> None:
        """No live task of this node refers to these any more."""
        for key in keys:
            self._rows.pop(key, None)

    def keep_only(self, keys: Collection[FileKey]) -> None:
        """The managers' complete list: everything else goes."""
        self.withdraw([key for key in self._rows if key not in keys])

    def get(self, kind: type[FileRow], reference: FileReference) -> FileRow:
        """What a reference stands for. Raises: Unavailable until it has arrived."""
        row = self._rows.get((kind, reference.id))
        if row is None:
            raise Unavailable(
                f"{kind.__name__.lower()} {reference.name} has not arrived from the managers yet"
            )
        return row


class TaskFiles:
    """directory: where the tasks' file systems are mounted. userns: the ids of the containers."""

    def __init__(self, directory: Path, facts: NodeFacts, userns: IdMap | None = None) -> None:
        self.contents = Contents()
        self._directory = directory
        self._facts = facts
        self._uids = None if userns is None else userns.uids
        self._gids = None if userns is None else userns.gids

    async def make(self, task: Task) -> tuple[Mount, ...]:
        """The task's files as mounts of its container; what an earlier attempt left is replaced.

        Raises: Unavailable, InvalidArgument, OSError.
        """
        if not (task.container.secrets or task.container.configs):
            return ()
        files = await asyncio.to_thread(self.files_for, task)
        place = self._directory / task.id
        ids = None if task.container.file_rotation is None else file_ids(task.container)
        await in_thread(partial(tmpfs.make, place, files, ids))
        if ids is not None:
            return _live_mounts(place, files)
        return tuple(
            Mount(
                target=file.target,
                source=str(place / file.path),
                read_only=True,
                relabel="private",
            )
            for file in files
        )

    def files_for(self, task: Task) -> list[File]:
        """What the task's container is to see. Raises: Unavailable, InvalidArgument."""
        is_live = task.container.file_rotation is not None
        return [
            self._file(task, *item, path=live_path(item[2]) if is_live else str(number))
            for number, item in enumerate(files_of(task.container))
        ]

    async def swap(self, task: Task) -> bool:
        """Put the contents that the task names in place of others; False: they are there already.

        Each file is replaced at once: who opens it sees the one or the other, whole. Until
        `settle` it counts as not done, so a worker that is killed in between does it again.
        Raises: Unavailable, InvalidArgument, OSError.
        """
        place = self._directory / task.id
        ids = file_ids(task.container)
        if await asyncio.to_thread(tmpfs.ids_in, place) == ids:
            return False
        files = await asyncio.to_thread(self.files_for, task)
        if any(not file.path for file in files):
            raise InvalidArgument("a target is not below a directory whose files may be swapped")
        await in_thread(partial(tmpfs.swap, place, files))
        return True

    async def settle(self, task: Task) -> None:
        """What is in place is what the task names, and its program has been told. Idempotent."""
        place = self._directory / task.id
        if _is_there(place):
            await in_thread(partial(tmpfs.mark, place, file_ids(task.container)))

    async def remove(self, task_id: str) -> None:
        """The container has ended. Idempotent; what cannot be unmounted is logged."""
        place = self._directory / task_id
        if _is_there(place):  # most tasks have none
            await _remove_logged(place)

    async def keep_only(self, task_ids: Collection[str]) -> None:
        """Remove what belongs to no task: a worker that was killed may have left it."""
        await remove_others(self._directory, task_ids)

    def _file(
        self,
        task: Task,
        kind: type[FileRow],
        reference: FileReference,
        target: str,
        *,
        path: str,
    ) -> File:
        row = self.contents.get(kind, reference)
        what = f"{kind.__name__.lower()} {reference.name}"
        return File(
            target=target,
            path=path,
            content=self._content(task, row, what),
            uid=_outside(self._uids, reference.uid, f"{what}: uid"),
            gid=_outside(self._gids, reference.gid, f"{what}: gid"),
            mode=reference.mode,
        )

    def _content(self, task: Task, row: FileRow, what: str) -> bytes:
        if row.spec.templating is None or not row.spec.templating.name:
            return row.spec.data
        if row.spec.templating.name != GOLANG:
            raise InvalidArgument(f"{what}: template driver {row.spec.templating.name} is unknown")
        functions = {
            "secret": partial(self._called, Secret, task.container.secrets),
            "config": partial(self._called, Config, task.container.configs),
            "env": partial(self._variable, task),
        }
        limit = size_max(type(row))
        try:
            return expand_content(
                row.spec.data, task, self._facts, functions=functions, size_max=limit
            )
        except InvalidArgument as error:
            raise InvalidArgument(f"{what}: {error.message}") from error

    def _called(self, kind: type[FileRow], references: Sequence[FileReference], target: str) -> str:
        """The content of another file of the task, as it is stored: templates do not nest."""
        for reference in references:
            if reference.target == target:
                data = self.contents.get(kind, reference).spec.data
                return data.decode("utf-8", "surrogateescape")
        raise InvalidArgument(f"{kind.__name__.lower()} target {target} not found")

    def _variable(self, task: Task, name: str) -> str:
        """A variable as the service sets it, "" if it does not."""
        found = [text for text in task.container.env if text.startswith(f"{name}=")]
        return expand(found[-1], task, self._facts).partition("=")[2] if found else ""


async def remove_others(directory: Path, task_ids: Collection[str]) -> None:
    """Remove the files of all tasks but these; nobody may be making any. Never raises."""
    for task_id in await asyncio.to_thread(tmpfs.entries, directory):
        if is_id(task_id) and task_id not in task_ids:
            await _remove_logged(directory / task_id)


async def _remove_logged(place: Path) -> None:
    try:
        await in_thread(partial(tmpfs.remove, place))
    except OSError as error:
        _log.error("files.not_removed", path=str(place), reason=str(error))


def _outside(ranges: Sequence[IdRange] | None, text: str, field: str) -> int:
    """The node's number of a user or group of the container. Raises: InvalidArgument."""
    number = int(text or 0)
    if ranges is None:
        return number
    for part in ranges:
        if part.inside <= number < part.inside + part.size:
            return part.outside + number - part.inside
    raise InvalidArgument(f"{field} {number} is none that containers of this node have")


def _live_mounts(place: Path, files: Sequence[File]) -> tuple[Mount, ...]:
    """The directories with the files: below them others may take their place."""
    used = {file.path.partition("/")[0] for file in files}
    return tuple(
        Mount(target=target, source=str(place / name), read_only=True, relabel="private")
        for target in LIVE_DIRS
        if (name := target.rpartition("/")[2]) in used
    )


def _is_there(place: Path) -> bool:
    """Below the run directory: a look costs less than a thread."""
    return place.exists()
