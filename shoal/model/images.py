"""Which images a node has, as short marks: what nodes tell their managers, and how it is read.

A mark is the first 8 bytes of the SHA-256 of an image's full name (`docker.io/library/web:latest`,
or with a digest instead of the tag). A node's marks are joined, so that a thousand nodes cost a
manager little. They are hints: two names in 2**64 share a mark, a tag may mean another image by
now, and a node with more than MARKS_MAX names tells of the newest. Nothing but the choice among
nodes that are as good as each other may rest on them.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

from shoal.errors import InvalidArgument
from shoal.model.reference import Reference, parse_reference

MARK_BYTES = 8
MARKS_MAX = 256
_CACHED_MAX = 4096


@lru_cache(maxsize=_CACHED_MAX)
def mark_of(image: str) -> bytes:
    """The mark of an image's name as a user wrote it; empty where it is no name."""
    try:
        reference = parse_reference(image).with_default_tag()
    except InvalidArgument:
        return b""
    if reference.digest is not None:  # what the tag was is of no matter then
        reference = Reference(
            registry=reference.registry, repository=reference.repository, digest=reference.digest
        )
    return sha256(str(reference).encode()).digest()[:MARK_BYTES]


def join(images: Iterable[str]) -> bytes:
    """The marks of these names, the first MARKS_MAX, each once, in an order of their own."""
    marks = dict.fromkeys(mark for image in images if (mark := mark_of(image)))
    return b"".join(sorted([*marks][:MARKS_MAX]))


def check_marks(marks: bytes) -> None:
    """Refuse what no node would tell. Raises: InvalidArgument."""
    if len(marks) % MARK_BYTES or len(marks) > MARKS_MAX * MARK_BYTES:
        raise InvalidArgument(
            f"images: {len(marks)} bytes, must be up to {MARKS_MAX} marks of {MARK_BYTES} bytes"
        )


def holds(marks: bytes, mark: bytes) -> bool:
    """Whether a mark is among those of a node."""
    if not mark:
        return False
    place = marks.find(mark)
    while place % MARK_BYTES and place != -1:
        place = marks.find(mark, place + 1)
    return place != -1
