"""`POST /build` and `POST /build/prune`.

What is wrong with the call or its Dockerfile is an ordinary error; after the first line everything
is told in the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from engine.build.builder import Builder
from engine.build.output import Output
from engine.build.request import read_request
from engine.http.call import Answer, Call, json_answer
from engine.http.routing import Route
from worker.images.model import Image
from worker.images.registry.api import Credentials

PRUNE_FILTERS = frozenset({"until", "id", "label", "type", "inuse", "parent", "description"})


class Fetch(Protocol):
    """Pulls an image for a build."""

    async def __call__(
        self, ref: str, platform: str, credentials: Mapping[str, Credentials], output: Output
    ) -> Image:
        """Raises: SwarmError."""
        ...


def routes(builder: Builder, fetch: Fetch) -> Iterable[Route]:
    """fetch: brings a base image that is not here."""

    async def build(call: Call) -> Answer:
        request = read_request(call.query)
        credentials = call.registry_config()

        async def pull(ref: str, platform: str, output: Output) -> Image:
            return await fetch(ref, platform, credentials, output)

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
