"""What the volume store is asked for and what it answers: data and one Protocol.

A volume is a directory of this node, or a mount its options describe. It lives until somebody
removes it; it is never removed while a container refers to it. Users are container ids, kept by
the caller: the store asks for them instead of counting, so a crash cannot leave a count behind.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

VolumeUsers = Callable[[], Awaitable[Mapping[str, frozenset[str]]]]
"""Container ids by volume name, of all containers of the node, running or not."""


class Volume(msgspec.Struct, frozen=True, kw_only=True):
    """One volume. `options` empty: a plain directory; else `type`, `device`, `o` as for mount."""

    name: str
    mountpoint: str
    created_at_ns: int
    driver: str = "local"
    labels: dict[str, str] = {}
    options: dict[str, str] = {}
    anonymous: bool = False
    """Made for one container without a name given: `prune` removes it, `rm -v` too."""

    @property
    def own_ids(self) -> bool:
        """Whether its files are the containers', and not those of a place its options name."""
        return "device" not in self.options


class VolumeMount(msgspec.Struct, frozen=True, kw_only=True):
    """A volume, ready to be bound into a container. `source`: host path, subpath resolved."""

    volume: str
    source: str


class Volumes(Protocol):
    """The volumes of the node. Every method raises `shoal.errors.SwarmError`s."""

    async def create(
        self,
        name: str = "",
        *,
        driver: str = "local",
        options: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Volume:
        """Make it, or find the one of that name made with the same options.

        Without a name: anonymous, 64 hexadecimal digits. Raises: InvalidArgument, NotFound
        (driver), AlreadyExists.
        """
        ...

    def list(self) -> tuple[Volume, ...]:
        """Every volume, by name."""
        ...

    def get(self, name: str) -> Volume:
        """One volume. Raises: NotFound `get x: no such volume`."""
        ...

    async def remove(self, name: str, *, force: bool = False, user: str = "") -> None:
        """Remove it and its data; `force` accepts one that does not exist.

        user: a container on whose behalf it is removed: it does not count as one. Raises: NotFound,
        FailedPrecondition `remove v1: volume is in use - [<container ids>]`.
        """
        ...

    async def mount(
        self, name: str, container: str, *, subpath: str = "", copy_from: str = ""
    ) -> VolumeMount:
        """Make the volume's content reachable for a container. Idempotent.

        copy_from: a directory (the image's content at the target) copied into a volume that is
        still empty, with owners, modes and attributes. Raises: NotFound, InvalidArgument (a
        subpath that leaves the volume), FailedPrecondition (the mount fails).
        """
        ...

    async def unmount(self, name: str, container: str) -> bool:
        """The container no longer needs it: a mounted one is unmounted with its last user.

        Result: whether it was this container's until now. Idempotent.
        """
        ...

    async def users(self) -> Mapping[str, frozenset[str]]:
        """The containers that use each volume: the engine's, tasks', and who is about to start.

        A volume that is not in it is used by nobody, and may be removed.
        """
        ...

    async def size_bytes(self, name: str) -> int:
        """Disk space its content takes."""
        ...
