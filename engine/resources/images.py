"""`/images`: looking at them, naming, removing, and taking them from here to there.

Pull and push are in `registries`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.http.call import Answer, Call, empty, json_answer
from engine.http.errors import Refused, stream_error
from engine.http.routing import Route
from engine.images import words
from engine.images.selection import ACCEPTED, PRUNE_ACCEPTED
from engine.images.service import NodeImages
from shoal.errors import InvalidArgument, NotFound

_CUT_ARCHIVES = ("archive is truncated", "archive is empty")
_CUT_TEXT = "Error processing tar file(exit status 1): unexpected EOF"


def routes(images: NodeImages) -> Iterable[Route]:
    """All operations on images that ask no registry."""
    resource = _Resource(images)
    yield Route("GET", "/images/json", resource.list)
    yield Route("GET", "/images/search", resource.search)
    yield Route("GET", "/images/get", resource.save, follows_client=True)
    yield Route("POST", "/images/load", resource.load, follows_client=True)
    yield Route("POST", "/images/prune", resource.prune)
    yield Route("GET", "/images/{name:path}/json", resource.inspect)
    yield Route("GET", "/images/{name:path}/history", resource.history)
    yield Route("GET", "/images/{name:path}/get", resource.save_one, follows_client=True)
    yield Route("POST", "/images/{name:path}/tag", resource.tag)
    yield Route("DELETE", "/images/{name:path}", resource.remove)


class _Resource:
    def __init__(self, images: NodeImages) -> None:
        self._images = images

    async def list(self, call: Call) -> Answer:
        filters = call.query.filters(ACCEPTED)
        chosen = self._images.select(filters, shows_all=call.query.flag("all"))
        counts = self._images.sharing() if call.query.flag("shared-size") else None
        return json_answer(
            [
                words.summary(
                    one.image,
                    call.version,
                    tags=one.tags,
                    digests=one.digests,
                    shared_bytes=-1 if counts is None else words.shared_bytes(one.image, counts),
                )
                for one in chosen
            ]
        )

    async def inspect(self, call: Call) -> Answer:
        name, store = call.path["name"], self._images.store
        try:
            image = store.resolve(name)
            found = await store.configuration(image)
        except NotFound as error:
            raise NotFound(f"no such image: {name}: {error.message}") from error
        return json_answer(words.inspected(image, found, store.layers(image), call.version))

    async def history(self, call: Call) -> Answer:
        store = self._images.store
        steps = await store.history(store.resolve(call.path["name"]))
        return json_answer([words.history(step) for step in steps])

    async def tag(self, call: Call) -> Answer:
        await self._images.tag(call.path["name"], asked_name(call, "repo"))
        return empty(201)

    async def remove(self, call: Call) -> Answer:
        removal = await self._images.remove(
            call.path["name"],
            force=call.query.flag("force"),
            prune=not call.query.flag("noprune"),
        )
        return json_answer(words.removal(removal))

    async def prune(self, call: Call) -> Answer:
        removal = await self._images.prune(call.query.filters(PRUNE_ACCEPTED))
        return json_answer(
            {
                "ImagesDeleted": words.removal(removal) or None,
                "SpaceReclaimed": removal.freed_bytes,
            }
        )

    async def search(self, call: Call) -> Answer:
        if not call.query.text("term"):
            raise InvalidArgument("term: give what to search for")
        raise Refused(
            501,
            "search: this node asks no search index: look at the registry's own pages, or list a"
            " repository's tags with a client of the registry",
        )

    async def save(self, call: Call) -> Answer:
        names = [name for text in call.query.many("names") for name in text.split(",") if name]
        if not names:
            raise InvalidArgument("names: give at least one image")
        return await self._save(call, names)

    async def save_one(self, call: Call) -> Answer:
        return await self._save(call, [call.path["name"]])

    async def _save(self, call: Call, names: Sequence[str]) -> Answer:
        store = self._images.store
        try:
            chosen = store.to_save(names)
        except NotFound:
            raise NotFound("reference does not exist") from None
        async with store.save(chosen) as pieces, call.stream("application/x-tar") as out:
            async for piece in pieces:
                await out.write(piece)
        for one in chosen:
            self._images.tell("save", one.image.id, one.image.id)
        return out.answer

    async def load(self, call: Call) -> Answer:
        async with call.progress() as out:
            try:
                loaded = await self._images.load(call.chunks())
            except InvalidArgument as error:  # told inside, after the status of success
                await out.put(stream_error(_load_error(error.message)))
                return out.answer
            for text in loaded:
                what = "Loaded image ID" if text.startswith("sha256:") else "Loaded image"
                await out.put({"stream": f"{what}: {text}\n"})
        return out.answer


def _load_error(message: str) -> str:
    return _CUT_TEXT if message.startswith(_CUT_ARCHIVES) else message


def asked_name(call: Call, repository: str) -> str:
    """The name in the parameters `repo` and `tag`; the first may hold the tag, too."""
    name, tag = call.query.text(repository), call.query.text("tag")
    return f"{name}:{tag}" if name and tag else name
