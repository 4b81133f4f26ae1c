"""What the engine does with images: each change is made by the store and told as an event."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, Sequence

from engine.http.filters import Filters
from engine.images import selection
from engine.ports import Event, Events
from shoal.clock import Clock
from shoal.errors import FailedPrecondition, NotFound
from shoal.model.reference import parse_reference
from worker.images.model import Image, Removal, Removed, User
from worker.images.store import ImageStore

ImageUsers = Callable[[], Awaitable[Mapping[str, Sequence[User]]]]


class NodeImages:
    """The images of the node, for the API. users: the containers made from each."""

    def __init__(self, store: ImageStore, users: ImageUsers, events: Events, clock: Clock) -> None:
        self.store = store
        self._users = users
        self._events = events
        self._clock = clock

    def select(self, filters: Filters, *, shows_all: bool) -> list[selection.Shown]:
        """Those of a list, newest first. Raises: InvalidArgument."""
        return selection.select(self.store.list(), filters, self._known(), shows_all=shows_all)

    def sharing(self) -> Counter[str]:
        """How many images have each layer, by chain id."""
        return Counter(layer.chain_id for image in self.store.list() for layer in image.layers)

    async def tag(self, ref: str, name: str) -> None:
        """One more name. Raises: NotFound, InvalidArgument."""
        image = self.store.resolve(ref)
        await self.store.tag(image.id, name)
        self.tell("tag", image.id, parse_reference(name).with_default_tag().familiar())

    async def remove(self, ref: str, *, force: bool, prune: bool) -> Removal:
        """Take a name or an image away. Raises: NotFound, InvalidArgument, FailedPrecondition."""
        image = self.store.resolve(ref)
        removal = await self.store.remove(ref, users=await self._users(), force=force, prune=prune)
        self._tell_removal(image, removal)
        return removal

    async def prune(self, filters: Filters) -> Removal:
        """Remove what nothing uses, as far as the filters want. Raises: InvalidArgument."""
        users = await self._users()
        chosen = selection.prunable(
            self.store.list(), filters, self._known(), lambda image: bool(users.get(image.id))
        )
        lines: list[Removed] = []
        freed = 0
        for image in chosen:
            for ref in self._ways_to(image):
                try:
                    removal = await self.store.remove(ref, users=await self._users())
                except (NotFound, FailedPrecondition):  # somebody took it, or has begun to use it
                    continue
                self._tell_removal(image, removal)
                lines += removal.lines
                freed += removal.freed_bytes
        self._events.publish(Event("image", "prune", "", {"reclaimed": str(freed)}))
        return Removal(tuple(lines), freed)

    async def import_rootfs(
        self, source: AsyncIterable[bytes], name: str, changes: Sequence[str], message: str
    ) -> Image:
        """An image from a root file system. Raises: InvalidArgument, ResourceExhausted."""
        image = await self.store.import_rootfs(
            source, name or None, changes=changes, comment=message
        )
        self.tell("import", image.id, image.id)
        return image

    async def load(self, source: AsyncIterable[bytes]) -> list[str]:
        """Names, or ids of those without, of an archive. Raises: InvalidArgument, …."""
        loaded = await self.store.load(source)
        for text in loaded:
            image_id = self.store.resolve(text).id
            self.tell("load", image_id, image_id)
        return loaded

    def tell(self, action: str, actor: str, name: str) -> None:
        """Publish an event. actor: an id, or what a registry was asked for."""
        image = self.store.by_id(actor)
        labels = {} if image is None else dict(image.config.labels)
        self._events.publish(Event("image", action, actor, {**labels, "name": name}))

    def _known(self) -> selection.Known:
        return selection.Known(
            self.store.resolve,
            lambda image: bool(self.store.children(image)),
            self._clock.now_ns(),
        )

    def _ways_to(self, image: Image) -> tuple[str, ...]:
        """What to remove so that an image goes: its names one by one, or else its id."""
        return image.names or image.repo_digests or (image.id,)

    def _tell_removal(self, image: Image, removal: Removal) -> None:
        for _ in removal.untagged:
            self.tell("untag", image.id, image.id)
        for deleted in removal.deleted:
            if deleted == image.id:
                self.tell("delete", image.id, image.id)
