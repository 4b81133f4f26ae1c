"""Which image goes when the disk fills up. Pure.

Above the high mark images are removed one by one until the low mark is reached. Only images that a
registry can give back go, and only those nobody needs: not one that a container was made from, a
task waits for, somebody holds, or another image was made from. The one that was named longest ago
goes first; fresh ones stay, as whoever pulled them has not had time to use them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from shoal.errors import InvalidArgument
from worker.images.index import ImageRecord, Index

AGE_MIN_NS = 600 * 1_000_000_000


class Marks(msgspec.Struct, frozen=True):
    """Used shares of the disk, in percent. high: 100 removes nothing."""

    high: int = 90
    low: int = 80


def check_marks(high: int, low: int) -> Marks:
    """Raises: InvalidArgument."""
    if not 0 < low < high <= 100:
        raise InvalidArgument(
            f"image water marks: {high} and {low}: must be percent, the low one below the high one"
        )
    return Marks(high, low)


def is_too_full(used_percent: float, marks: Marks, *, collecting: bool) -> bool:
    """Whether something has to go. collecting: it began, and ends at the low mark only."""
    if marks.high >= 100:
        return False
    return used_percent > (marks.low if collecting else marks.high)


def next_victim(index: Index, needed: Collection[str], now_ns: int) -> ImageRecord | None:
    """The image that goes next; None when nothing may."""
    parents = {record.parent for record in index.images.values()}
    known_elsewhere = set(index.digests.values())
    fitting: Iterable[ImageRecord] = (
        record
        for image_id, record in index.images.items()
        if image_id in known_elsewhere
        and image_id not in needed
        and image_id not in parents
        and record.tagged_at_ns <= now_ns - AGE_MIN_NS
    )
    return min(fitting, key=lambda record: (record.tagged_at_ns, record.id), default=None)
