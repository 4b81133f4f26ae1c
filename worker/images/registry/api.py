"""What registries are asked for, and how progress is told: data and one Protocol.

A `Progress` callback never blocks and never fails: the caller puts what it gets into a bounded
queue or drops it. Nothing here knows HTTP answers of the Engine API; it only uses its words for
the states of a layer, because every client knows them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from worker.images.model import Image


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. `identity_token`: an OAuth2 refresh token instead of a password."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""
    server_address: str = ""

    @property
    def anonymous(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.username or self.identity_token or self.registry_token)


class RegistrySettings(msgspec.Struct, frozen=True, kw_only=True):
    """Which registries may be talked to without TLS, and which stand in for docker.io."""

    insecure: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Hosts (`name:port`) or subnets; plain HTTP is tried there after TLS."""
    mirrors: tuple[str, ...] = ()
    """Base URLs asked first for images of docker.io."""
    certificates: str = "/etc/docker/certs.d"
    """`<host:port>/{ca.crt,client.cert,client.key}`, as Docker reads them."""
    parallel_downloads: int = 3
    parallel_uploads: int = 5
    retry_pause_s: float = 0.5
    """Before the second attempt at what a registry is too busy or too broken for."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One line of progress. `id`: a layer's 12 digits, a tag, or "" for the whole.

    whole: it is about the image, although it has an id.
    """

    status: str
    id: str = ""
    current: int = 0
    total: int = 0
    whole: bool = False


Progress = Callable[[Step], None]


class Pushed(msgspec.Struct, frozen=True):
    """What a push has left in the registry."""

    tag: str
    digest: str
    manifest_bytes: int


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest in a registry, for `/distribution/{name}/json`."""

    media_type: str
    digest: str
    size_bytes: int
    platforms: tuple[tuple[str, str, str], ...] = ()
    """Operating system, architecture, variant."""


class Registry(Protocol):
    """Pull, push and ask. Raises: `SwarmError`s with the registry's own words."""

    async def pull(
        self,
        reference: str,
        *,
        credentials: Credentials | None = None,
        platform: str = "",
        all_tags: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Image, ...]:
        """Bring images here; several only with `all_tags`.

        Raises: NotFound (`manifest for … not found: manifest unknown`), Unauthenticated,
        InvalidArgument (`unknown operating system or architecture`), Unavailable,
        ResourceExhausted.
        """
        ...

    async def push(
        self,
        reference: str,
        *,
        credentials: Credentials | None = None,
        all_tags: bool = False,
        progress: Progress | None = None,
    ) -> tuple[Pushed, ...]:
        """Send an image's layers, configuration and manifest. Raises as `pull`."""
        ...

    async def describe(
        self, reference: str, *, credentials: Credentials | None = None
    ) -> Descriptor:
        """The manifest or index a reference stands for in its registry."""
        ...

    async def login(self, credentials: Credentials) -> str:
        """Show the registry who we are. Result: identity token, mostly "".

        Raises: Unauthenticated, Unavailable.
        """
        ...
