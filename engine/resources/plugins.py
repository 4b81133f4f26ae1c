"""Plugins and BuildKit sessions: there are none, and none can be installed."""

from __future__ import annotations

from collections.abc import Iterable

from engine.http.call import Answer, Call, json_answer
from engine.http.errors import Refused
from engine.http.routing import Route
from shoal.errors import InvalidArgument, NotFound, Unimplemented

_NAMED = (
    ("DELETE", "/plugins/{name:path}"),
    ("POST", "/plugins/{name:path}/enable"),
    ("POST", "/plugins/{name:path}/disable"),
    ("POST", "/plugins/{name:path}/upgrade"),
    ("POST", "/plugins/{name:path}/push"),
    ("POST", "/plugins/{name:path}/set"),
)


def routes() -> Iterable[Route]:
    """All of them."""
    yield Route("GET", "/plugins", _list)
    yield Route("GET", "/plugins/privileges", _refuse)
    yield Route("POST", "/plugins/pull", _refuse)
    yield Route("POST", "/plugins/create", _refuse)
    yield Route("GET", "/plugins/{name:path}/json", _missing)
    yield from (Route(method, path, _missing) for method, path in _NAMED)
    yield Route("POST", "/session", _session)


async def _list(call: Call) -> Answer:
    call.query.filters(("capability", "enabled"))
    return json_answer([])


async def _missing(call: Call) -> Answer:
    raise NotFound(f'plugin "{call.path["name"]}" not found')


async def _refuse(call: Call) -> Answer:
    del call
    raise Unimplemented("plugins: this node runs no plugins; drivers are built in")


async def _session(call: Call) -> Answer:
    if not call.header("Upgrade"):
        raise InvalidArgument("no upgrade proto in request")
    raise Refused(501, "session: BuildKit is not spoken here: use the classic builder")
