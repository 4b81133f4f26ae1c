"""Who holds an image without having a container of it: builds, pushes, archives being written.

A lease lives in memory and ends with its holder: what a crash interrupts holds nothing any more,
and no lease has to expire.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Leases:
    """How often each image is held."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, image_id: str) -> Iterator[None]:
        """Hold an image while inside."""
        self._held[image_id] += 1
        try:
            yield
        finally:
            self._held[image_id] -= 1
            self._held += Counter()  # forgets those nobody holds

    @property
    def held(self) -> frozenset[str]:
        """Ids of the images somebody holds."""
        return frozenset(self._held)
