"""Which secrets and configs one node has been sent, and which it has to get or to forget.

Invariant: a node has the content of what its own live tasks refer to, and of nothing else. Content
never changes under an id, so each is sent once: before the first task that needs it, and forgotten
after the last one.
"""

from __future__ import annotations

from manager.store.view import View
from shoal.model.defaults import is_wanted
from shoal.model.enums import TaskState
from shoal.model.files import FileRow, files_of
from shoal.model.objects import Config, Secret, Task
from shoal.model.row import Row

BYTES_PER_TURN_MAX = 8 << 20
"""Content that is enough for one turn; the tasks after it come with the next one."""


class FileKey(Row, frozen=True, order=True):
    """Identity of a secret or config."""

    kind: str
    id: str


class FileSending:
    """State of one node's assignment stream, as far as secrets and configs are concerned."""

    def __init__(self) -> None:
        self._needs: dict[str, frozenset[FileKey]] = {}
        self._users: dict[FileKey, set[str]] = {}
        self._sent: set[FileKey] = set()
        self._new: dict[FileKey, FileRow] = {}
        self._new_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether no more tasks should be followed before the next `take`."""
        return self._new_bytes >= BYTES_PER_TURN_MAX

    def follow(self, view: View, task_id: str, task: Task | None) -> None:
        """A task of the node, or None if it is not the node's any more."""
        needed = frozenset() if task is None else _needed(task)
        before = self._needs.pop(task_id, frozenset())
        if needed:
            self._needs[task_id] = needed
        for key in before - needed:
            self._users[key].discard(task_id)
        for key in needed - before:
            self._users.setdefault(key, set()).add(task_id)
            if key not in self._sent and key not in self._new:
                self._add(key, view)

    def take(self) -> tuple[tuple[FileRow, ...], tuple[FileKey, ...]]:
        """Objects to send and keys to forget; marks them as sent."""
        unused = sorted(key for key, users in self._users.items() if not users)
        removed = tuple(key for key in unused if key in self._sent)
        for key in unused:
            del self._users[key]
            self._new.pop(key, None)
        changed = tuple(self._new.values())
        self._sent.update(self._new)
        self._sent.difference_update(unused)
        self._new.clear()
        self._new_bytes = 0
        return changed, removed

    def _add(self, key: FileKey, view: View) -> None:
        row = (view.secrets if key.kind == "secret" else view.configs).get(key.id)
        if row is not None:  # else somebody removed it: its task says that it waits for it
            self._new[key] = row
            self._new_bytes += len(row.spec.data)


def key_of(row: FileRow) -> FileKey:
    """Identity of an object."""
    return FileKey(_KINDS[type(row)], row.id)


_KINDS: dict[type[FileRow], str] = {Secret: "secret", Config: "config"}


def _needed(task: Task) -> frozenset[FileKey]:
    if not is_wanted(task) or task.status.state > TaskState.RUNNING:
        return frozenset()
    return frozenset(
        FileKey(_KINDS[kind], reference.id) for kind, reference, _ in files_of(task.container)
    )
