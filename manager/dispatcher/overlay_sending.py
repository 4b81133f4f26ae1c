"""What one node has been told of overlay networks, and what it has to be told next.

The node is on a network while the table says so; whoever comes to one hears of all that is on it,
whoever leaves one forgets all of it. Networks come before what is on them, and go after it.
"""

from __future__ import annotations

from manager.dispatcher.overlays import OverlayChanges, OverlayKey, OverlayRow, OverlayTable


class OverlaySending:
    """State of one node's assignment stream, as far as overlay networks are concerned."""

    def __init__(self, node_id: str) -> None:
        self._node_id = node_id
        self._sent: dict[OverlayKey, OverlayRow] = {}
        self._dirty: set[OverlayKey] = set()

    @property
    def is_dirty(self) -> bool:
        """Whether `take` may have something to say."""
        return bool(self._dirty)

    def mark_all(self, table: OverlayTable) -> None:
        """Everything may have to be sent."""
        self._dirty.update(self._sent)
        self._dirty.update(key for key in table.rows if self._hears_of(table, key))

    def mark(self, table: OverlayTable, changes: OverlayChanges) -> None:
        """These may have changed."""
        self._dirty.update(
            key for key in changes.keys if key in self._sent or self._hears_of(table, key)
        )
        moved = changes.moved.get(self._node_id, frozenset())
        for network_id in moved:
            self._dirty.update(table.keys_of(network_id))
        if moved:
            self._dirty.update(key for key in self._sent if key.network_id in moved)

    def take(self, table: OverlayTable) -> tuple[tuple[OverlayRow, ...], tuple[OverlayKey, ...]]:
        """Rows to send and keys to forget, each in order; marks them as sent."""
        changed: list[OverlayRow] = []
        removed: list[OverlayKey] = []
        for key in sorted(self._dirty):
            row = table.rows.get(key) if self._hears_of(table, key) else None
            if row is None:
                if self._sent.pop(key, None) is not None:
                    removed.append(key)
            elif self._sent.get(key) != row:
                self._sent[key] = row
                changed.append(row)
        self._dirty.clear()
        return tuple(changed), tuple(reversed(removed))

    def _hears_of(self, table: OverlayTable, key: OverlayKey) -> bool:
        return table.is_on(self._node_id, key.network_id)
