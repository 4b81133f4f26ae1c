"""`POST /build` and `POST /build/prune`.

What is wrong with the call or its Dockerfile is an ordinary error; after the first line everything
is told in the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.build.builder import Builder
from engine.build.output import Output
from engine.build.request import read_request
from engine.http.call import Answer, Call, json_answer
from engine.http.routing import Route
from engine.images.relay import relayed
from shoal.model.reference import DEFAULT_REGISTRY, parse_reference
from worker.images.model import Image
from worker.images.registry.api import Credentials, Registry

PRUNE_FILTERS = frozenset({"until", "id", "label", "type", "inuse", "parent", "description"})
_HUB = "https://index.docker.io/v1/"
"""What clients call docker.io when they give credentials."""


def routes(builder: Builder, registry: Registry) -> Iterable[Route]:
    """registry: gives base images that are not here."""

    async def build(call: Call) -> Answer:
        request = read_request(call.query)
        credentials = call.registry_config()

        async def pull(ref: str, platform: str, output: Output) -> Image:
            name = parse_reference(ref).with_default_tag()
            shown = _credentials_for(name.registry, credentials)
            images = await relayed(
                output,
                lambda tell: registry.pull(
                    str(name), credentials=shown, platform=platform, progress=tell
                ),
            )
            return images[0]

        async with builder.prepared(request, call.chunks()) as prepared:
            async with call.progress() as stream:
                output = Output(stream.put, quiet=request.quiet)
                try:
                    await builder.build(prepared, output, pull)
                except Exception:
                    await output.failed()
                    raise
            return stream.answer

    async def prune(call: Call) -> Answer:
        """The cache is the images themselves: `image prune` frees it, nothing is kept besides."""
        call.query.filters(PRUNE_FILTERS)
        return json_answer({"CachesDeleted": None, "SpaceReclaimed": 0})

    return [
        Route("POST", "/build", build, follows_client=True),
        Route("POST", "/build/prune", prune),
    ]


def _credentials_for(registry: str, given: Mapping[str, Credentials]) -> Credentials | None:
    return given.get(_HUB if registry == DEFAULT_REGISTRY else registry)
