"""Swarm's operations, answered as a node answers that is in no swarm.

The cluster is worked with through swarmctl until these operations reach the control API; nothing
here looks at the node's membership, so no client is told half of it.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.http.call import Answer, Call
from engine.http.errors import Refused
from engine.http.routing import Route
from shoal.errors import Unimplemented

NOT_A_MANAGER = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect'
    " this node to swarm and try again."
)
NOT_IN_A_SWARM = "This node is not part of a swarm"
_MANAGERS_ONLY = (
    ("GET", "/swarm"), ("POST", "/swarm/update"), ("GET", "/swarm/unlockkey"),
    ("POST", "/swarm/unlock"),
    ("GET", "/nodes"), ("GET", "/nodes/{id}"), ("DELETE", "/nodes/{id}"),
    ("POST", "/nodes/{id}/update"),
    ("GET", "/services"), ("POST", "/services/create"), ("GET", "/services/{id}"),
    ("DELETE", "/services/{id}"), ("POST", "/services/{id}/update"), ("GET", "/services/{id}/logs"),
    ("GET", "/tasks"), ("GET", "/tasks/{id}"), ("GET", "/tasks/{id}/logs"),
    ("GET", "/secrets"), ("POST", "/secrets/create"), ("GET", "/secrets/{id}"),
    ("DELETE", "/secrets/{id}"), ("POST", "/secrets/{id}/update"),
    ("GET", "/configs"), ("POST", "/configs/create"), ("GET", "/configs/{id}"),
    ("DELETE", "/configs/{id}"), ("POST", "/configs/{id}/update"),
    ("PUT", "/volumes/{name}"),
)  # fmt: skip


def routes() -> Iterable[Route]:
    """All of them."""
    yield from (Route(method, path, _refuse) for method, path in _MANAGERS_ONLY)
    yield Route("POST", "/swarm/init", _refuse_init)
    yield Route("POST", "/swarm/join", _refuse_init)
    yield Route("POST", "/swarm/leave", _refuse_leave)


async def _refuse(call: Call) -> Answer:
    del call
    raise Refused(503, NOT_A_MANAGER)


async def _refuse_init(call: Call) -> Answer:
    del call
    raise Unimplemented(
        "clusters are not made or joined through the Docker API on this version: use"
        " `swarmctl init` or `swarmctl join`"
    )


async def _refuse_leave(call: Call) -> Answer:
    del call
    raise Refused(503, NOT_IN_A_SWARM)
