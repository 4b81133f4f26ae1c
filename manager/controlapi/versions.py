"""The rule of all updates: a change made from an old version is refused. Pure."""

from __future__ import annotations

from shoal.errors import SequenceConflict
from shoal.model.types import Version


def check_version(stored: Version, read: int, kind: str) -> None:
    """Refuse a change made against an old version. 0 means: whatever is there."""
    if read not in (0, stored.index):
        raise SequenceConflict(
            f"{kind}: update out of sequence (read at version {read}, now at {stored.index}): "
            "read it again and retry"
        )
