"""The last commits, so that a watch can go on where an earlier one ended.

Invariant: every commit after version `since` that was ever applied here is held, whole and in the
order of the log; so what a manager replays is what every other one replays. Bounded by commits and
by bytes: the oldest go first. Refuses versions it does not reach back to, and those that are not
there yet, rather than leave a gap. No I/O, no clock.
"""

from __future__ import annotations

from collections import deque

from manager.store.apply import Commit
from shoal.errors import FailedPrecondition, invariant

COMMITS_MAX = 10_000
"""As many as there are entries between two snapshots."""
BYTES_MAX = 8 << 20
"""Of entries as they are in the log. In memory they take up to seven times that (measured with the
smallest rows), for as long as newer ones have not taken their place."""


class VersionCompacted(FailedPrecondition):
    """The history begins later: read the state again, and watch from then on."""


class VersionUnknown(FailedPrecondition):
    """The version lies in the future: it is of another cluster, or of one before a restore."""


class History:
    """Commits after `since`; the newest is added last."""

    def __init__(
        self, since: int = 0, *, commits_max: int = COMMITS_MAX, bytes_max: int = BYTES_MAX
    ) -> None:
        self._commits: deque[tuple[Commit, int]] = deque()
        self._since = since
        self._commits_max = commits_max
        self._bytes_max = bytes_max
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._commits)

    @property
    def since(self) -> int:
        """The oldest version from which a watch can go on."""
        return self._since

    @property
    def size_bytes(self) -> int:
        """What is held, as it is in the log."""
        return self._size_bytes

    def add(self, commit: Commit, size_bytes: int) -> None:
        """A commit newer than all before. size_bytes: of its entry in the log."""
        newest = self._commits[-1][0].version if self._commits else self._since
        invariant(commit.version > newest, "history goes back", at=newest, new=commit.version)
        self._commits.append((commit, size_bytes))
        self._size_bytes += size_bytes
        while len(self._commits) > self._commits_max or self._size_bytes > self._bytes_max:
            oldest, freed_bytes = self._commits.popleft()
            self._size_bytes -= freed_bytes
            self._since = oldest.version

    def after(self, version: int, *, now: int) -> deque[Commit]:
        """Every commit after a version, in order. now: the version of the state.

        Raises: VersionCompacted, VersionUnknown.
        """
        if version < self._since:
            raise VersionCompacted(
                f"version {version} is compacted: watches can go on from version {self._since} or"
                " later: read the objects again and watch anew"
            )
        if version > now:
            raise VersionUnknown(
                f"version {version} is unknown: the cluster is at version {now}: read the objects"
                " again and watch anew"
            )
        found: deque[Commit] = deque()
        for commit, _ in reversed(self._commits):
            if commit.version <= version:
                break
            found.appendleft(commit)
        return found
