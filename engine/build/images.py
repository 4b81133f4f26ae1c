"""The image store as builds see it: steps, and what was made of which."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from engine.build.probing import Made
from shoal.errors import NotFound
from worker.images.model import Image
from worker.images.store import ImageStore


class StepImages:
    """Implements `engine.build.ground.BuildImages`."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def resolve(self, ref: str) -> Image:
        """Raises: NotFound, InvalidArgument."""
        return self._store.resolve(ref)

    async def made_from(self, parent: str) -> list[Made]:
        """Images that a step made here on top of that one; "": of nothing."""
        found: list[Made] = []
        for image in self._store.list():
            if image.parent != parent:
                continue
            try:
                document = await self._store.configuration(image)
            except NotFound:  # it was removed meanwhile
                continue
            if document.history:
                created_by = document.history[-1].created_by
                found.append(Made(image.id, image.created, document.config or {}, created_by))
        return found

    async def config(self, image: Image) -> Mapping[str, Any]:
        """The image's `config` object in Docker's spelling. Raises: NotFound."""
        return (await self._store.configuration(image)).config or {}

    async def commit(
        self,
        upper: str,
        base: Image | None,
        config: bytes,
        *,
        author: str = "",
        created_by: str = "",
    ) -> Image:
        """One more step on `base`. Raises: SwarmError."""
        return await self._store.commit(upper, base, config, author=author, created_by=created_by)

    async def tag(self, image: Image, name: str) -> None:
        """One more name. Raises: SwarmError."""
        await self._store.tag(image.id, name)

    def lease(self, image: Image) -> AbstractAsyncContextManager[None]:
        """The image stays while inside. Raises: NotFound."""
        return self._store.lease(image.id)
