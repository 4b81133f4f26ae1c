"""`/swarm`: the node's membership, and the settings of its cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.cluster.client import ClusterClient
from engine.cluster.settings import (
    ClusterBody,
    InitBody,
    JoinBody,
    UnlockBody,
    next_spec,
    swarm_json,
)
from engine.cluster.standing import LEAVES_LOCKED, NOT_IN_A_SWARM
from engine.http.call import Answer, Call, empty, json_answer
from engine.http.errors import Refused
from engine.http.routing import Route
from shoal.errors import FailedPrecondition, InvalidArgument, PermissionDenied

_VERSION = re.compile(r"[0-9]{1,19}")


def routes(cluster: ClusterClient) -> Iterable[Route]:
    """The operations."""
    calls = _Calls(cluster)
    return [
        Route("GET", "/swarm", calls.inspect),
        Route("POST", "/swarm/init", calls.init),
        Route("POST", "/swarm/join", calls.join),
        Route("POST", "/swarm/leave", calls.leave),
        Route("POST", "/swarm/update", calls.update),
        Route("GET", "/swarm/unlockkey", calls.unlock_key),
        Route("POST", "/swarm/unlock", calls.unlock),
    ]


def version_of(call: Call, kind: str) -> int:
    """The version that the client read. Raises: InvalidArgument, as Docker without one."""
    text = call.query.text("version")
    if not _VERSION.fullmatch(text):
        why = f'strconv.ParseUint: parsing "{text}": invalid syntax'
        raise InvalidArgument(f"invalid {kind} version '{text}': {why}")
    return int(text)


class _Calls:
    """The handlers."""

    def __init__(self, cluster: ClusterClient) -> None:
        self._cluster = cluster

    async def inspect(self, call: Call) -> Answer:
        del call
        return json_answer(swarm_json(await self._cluster.cluster()))

    async def init(self, call: Call) -> Answer:
        body = await call.body(InitBody)
        return json_answer(await self._cluster.init(body.request()))

    async def join(self, call: Call) -> Answer:
        body = await call.body(JoinBody)
        await self._cluster.join(body.request())
        return empty()

    async def leave(self, call: Call) -> Answer:
        standing, force = await self._cluster.standing(), call.query.flag("force")
        if not standing.is_member:
            raise Refused(503, NOT_IN_A_SWARM)
        if standing.state == "locked" and not force:
            raise Refused(503, LEAVES_LOCKED)
        await self._cluster.leave(force=force)
        return empty()

    async def update(self, call: Call) -> Answer:
        version = version_of(call, "swarm")
        body = await call.body(ClusterBody)
        cluster = await self._cluster.cluster()
        spec = next_spec(cluster, body)
        await self._cluster.update_cluster(
            version,
            spec,
            worker_token=call.query.flag("rotateWorkerToken"),
            manager_token=call.query.flag("rotateManagerToken"),
            unlock_key=call.query.flag("rotateManagerUnlockKey"),
        )
        ca = body.ca_config
        if ca.signing_ca_cert or ca.force_rotate > cluster.root_ca.last_forced_rotation:
            certificate, key = ca.signing_ca_cert.encode(), ca.signing_ca_key.encode()
            await self._cluster.rotate_root(certificate, key, spec.ca.external_cas)
        return empty()

    async def unlock_key(self, call: Call) -> Answer:
        del call
        return json_answer({"UnlockKey": await self._cluster.unlock_key()})

    async def unlock(self, call: Call) -> Answer:
        body = await call.body(UnlockBody)
        standing = await self._cluster.standing()
        if not standing.is_member:
            raise Refused(503, standing.refusal)
        if standing.state != "locked":
            raise Refused(409, "swarm is not locked")
        try:
            await self._cluster.unlock(body.unlock_key)
        except (PermissionDenied, InvalidArgument) as error:
            raise Refused(401, "swarm could not be unlocked: invalid key provided") from error
        except FailedPrecondition as error:
            raise Refused(503, error.message) from error
        return empty()
