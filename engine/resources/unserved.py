"""Operations of a cluster that the Docker API does not have on this version.

They answer as on a node that is no manager where it is none, so that clients go on to the next one;
a manager names what is missing, and the way to it.
"""

from __future__ import annotations

from collections.abc import Iterable

from engine.cluster.client import ClusterClient
from engine.http.call import Answer, Call
from engine.http.errors import Refused
from engine.http.routing import Route
from shoal.errors import Unimplemented

_OPERATIONS = (
    ("PUT", "/volumes/{name}"),
)  # fmt: skip


def routes(cluster: ClusterClient) -> Iterable[Route]:
    """All of them."""

    async def refuse(call: Call) -> Answer:
        del call
        refusal = (await cluster.standing()).refusal
        if refusal:
            raise Refused(503, refusal)
        raise Unimplemented("the Docker API does not have this operation here: use `swarmctl`")

    return [Route(method, path, refuse) for method, path in _OPERATIONS]
