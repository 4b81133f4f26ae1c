"""What asks registries: `docker pull`, `push`, and what an image is called there.

`/images/create` is one route for pulls and for imports.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from engine.http.call import Answer, Call, json_answer
from engine.http.errors import Refused
from engine.http.routing import Route
from engine.images import words
from engine.images.relay import relayed
from engine.images.service import NodeImages
from engine.resources.images import asked_name
from shoal.errors import (
    DeadlineExceeded,
    InvalidArgument,
    Unauthenticated,
    Unavailable,
)
from shoal.model.reference import Reference, parse_reference
from worker.images.registry.api import Registry
from worker.images.registry.manifests import parse_platform, platform_text
from worker.images.registry.refusals import Refusal


def routes(images: NodeImages, registry: Registry) -> Iterable[Route]:
    """All operations that go to a registry, and import."""
    resource = _Resource(images, registry)
    yield Route("POST", "/images/create", resource.create, follows_client=True)
    yield Route("POST", "/images/{name:path}/push", resource.push, follows_client=True)
    yield Route("GET", "/distribution/{name:path}/json", resource.describe, follows_client=True)


class _Resource:
    def __init__(self, images: NodeImages, registry: Registry) -> None:
        self._images = images
        self._registry = registry

    async def create(self, call: Call) -> Answer:
        if call.query.text("fromImage"):
            return await self._pull(call)
        if call.query.text("fromSrc"):
            return await self._import(call)
        raise InvalidArgument("fromImage, fromSrc: one of them must say what is made")

    async def push(self, call: Call) -> Answer:
        name = _tagged(call.path["name"], call.query.text("tag"))
        bare = name.tag is None and name.digest is None
        credentials = call.credentials()
        with _registry_failures():
            async with call.progress() as out:
                pushed = await relayed(
                    out,
                    lambda tell: self._registry.push(
                        str(name), credentials=credentials, all_tags=bare, progress=tell
                    ),
                )
                for one in pushed:
                    aux = {"Tag": one.tag, "Digest": one.digest, "Size": one.manifest_bytes}
                    await out.put({"progressDetail": {}, "aux": aux})
                self._images.tell("push", name.familiar(), _bare(name))
        return out.answer

    async def describe(self, call: Call) -> Answer:
        with _registry_failures():
            found = await self._registry.describe(call.path["name"], credentials=call.credentials())
        return json_answer(words.distribution(found))

    async def _pull(self, call: Call) -> Answer:
        name = _tagged(call.query.text("fromImage").rstrip(":"), call.query.text("tag"))
        bare = name.tag is None and name.digest is None
        credentials, platform = call.credentials(), call.query.text("platform")
        with _registry_failures():
            async with call.progress() as out:
                await relayed(
                    out,
                    lambda tell: self._registry.pull(
                        str(name),
                        credentials=credentials,
                        platform=platform,
                        all_tags=bare,
                        progress=tell,
                    ),
                )
                self._images.tell("pull", name.familiar(), _bare(name))
        return out.answer

    async def _import(self, call: Call) -> Answer:
        source, name = call.query.text("fromSrc"), asked_name(call, "repo")
        if source != "-":
            raise Refused(
                501, f"fromSrc: this node fetches no archives: fetch {source[:200]} and pipe it in"
            )
        host = self._images.store.host
        wished = parse_platform(call.query.text("platform"), host)
        if (wished.os, wished.architecture) != (host.os, host.architecture):
            raise InvalidArgument(
                f"platform: {platform_text(wished)} does not run here: this node is"
                f" {platform_text(host)}"
            )
        async with call.progress() as out:
            image = await self._images.import_rootfs(
                call.chunks(), name, call.query.many("changes"), call.query.text("message")
            )
            await out.put({"status": image.id})
        return out.answer


def _tagged(name: str, tag: str) -> Reference:
    """A name and a tag, which may be a digest. Raises: InvalidArgument."""
    if not tag:
        return parse_reference(name)
    found = parse_reference(name)
    joint = "@" if ":" in tag else ":"
    return parse_reference(f"{found.registry}/{found.repository}{joint}{tag}")


def _bare(name: Reference) -> str:
    """The short form of a name's repository."""
    return Reference(registry=name.registry, repository=name.repository).familiar()


@contextmanager
def _registry_failures() -> Iterator[None]:
    """A registry's failure is told as Docker does: not as this node's unavailability."""
    try:
        yield
    except (Refusal, Unavailable, DeadlineExceeded, Unauthenticated) as error:
        status = 401 if isinstance(error, Refusal) and error.status == 401 else 500
        raise Refused(status, error.message) from error
