"""`/_ping`, `/version`, `/info`, `/auth`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from engine.cluster.client import ClusterClient
from engine.http.call import Answer, Call, empty, json_answer, text
from engine.http.credentials import AuthConfig
from engine.http.errors import Refused
from engine.http.routing import Route
from shoal.errors import DeadlineExceeded, SwarmError, Unavailable
from worker.images.registry.api import Credentials

_PING = {
    "Builder-Version": "1",  # the classic builder; BuildKit is not spoken
    "Cache-Control": "no-cache, no-store, must-revalidate",
    "Pragma": "no-cache",
}


class Login(Protocol):
    """What `/auth` asks of registries; part of `worker.images.registry.api.Registry`."""

    async def login(self, credentials: Credentials) -> str:
        """Result: an identity token, mostly ""."""
        ...


def routes(
    version: Callable[[], dict[str, Any]],
    info: Callable[[], Awaitable[dict[str, Any]]],
    cluster: ClusterClient,
) -> Iterable[Route]:
    """What the node is. version, info: their answers, made anew at each call."""

    async def headers() -> dict[str, str]:
        try:
            swarm = (await cluster.standing()).header
        except SwarmError:  # its daemon is being restarted: the node itself answers all the same
            swarm = "error"
        return {**_PING, "Swarm": swarm}

    async def ping(call: Call) -> Answer:
        del call
        return text("OK", headers=await headers())

    async def ping_head(call: Call) -> Answer:
        del call
        return empty(headers={**await headers(), "Content-Type": "text/plain; charset=utf-8"})

    async def get_version(call: Call) -> Answer:
        del call
        return json_answer(version())

    async def get_info(call: Call) -> Answer:
        del call
        return json_answer(await info())

    return [
        Route("GET", "/_ping", ping),
        Route("HEAD", "/_ping", ping_head),
        Route("GET", "/version", get_version),
        Route("GET", "/info", get_info),
    ]


def login_routes(registry: Login) -> Iterable[Route]:
    """`docker login`: the registry is asked, nothing is kept here."""

    async def login(call: Call) -> Answer:
        config = await call.body(AuthConfig)
        try:
            token = await registry.login(config.credentials())
        except (Unavailable, DeadlineExceeded) as error:  # the registry, not this node
            raise Refused(500, error.message) from error
        return json_answer({"IdentityToken": token, "Status": "Login Succeeded"})

    return [Route("POST", "/auth", login, follows_client=True)]
