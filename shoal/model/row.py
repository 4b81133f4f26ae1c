"""Base of every immutable value in the store.

Rows are frozen: a reader can never corrupt committed state, and equal parts are shared between
versions. They hold no reference cycles, so the garbage collector need not look at them
(`gc=False`), which keeps its pauses away from the heartbeats.
"""

from __future__ import annotations

from typing import Self

import msgspec


class Row(msgspec.Struct, frozen=True, gc=False):
    """Frozen, and outside the cyclic garbage collector."""

    def replaced(self, **changes: object) -> Self:
        """A copy with some fields replaced; a field that does not exist is a TypeError."""
        return msgspec.structs.replace(self, **changes)
