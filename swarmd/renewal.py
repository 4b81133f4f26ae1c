"""Keeps the node's certificate alive: renews it in time, when asked, and after it has expired.

A certificate is renewed at a random 50 to 80 % of its life, so that the nodes of a cluster do not
all come at once, and earlier when the managers want another role or ask for it. Failures are
tried again after 5 s, doubling up to an hour. The identity on disk is replaced as a whole before
the processes hear of it, and no connection is dropped. A node that cannot renew keeps what it has:
its containers run on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import msgspec
import structlog

from shoal.aio.backoff import Backoff
from shoal.aio.cancel import raise_if_cancelled
from shoal.clock import NS_PER_S, Clock
from shoal.errors import SwarmError, Unavailable
from shoal.model.enums import NodeRole
from shoal.security.identity import RENEW_FRACTION_MAX, RENEW_FRACTION_MIN, NodeIdentity
from shoal.security.roles import Role
from shoal.security.trust import merge_roots
from swarmd import ca_client, manager_client, worker_client
from swarmd.control_client import ClusterClient
from swarmd.node import LocalNode
from swarmd.roles import RoleSwitch
from swarmd.upstream import Upstream
from swarmd.worker_client import MembershipNews

RETRY_MIN_S = 5.0
RETRY_MAX_S = 3600.0
LOOK_PERIOD_S = 60.0
"""The wall clock may be set while we wait, so it is looked at this often."""
NEWS_RETRY_S = 1.0
MANAGERS_TRIED_MAX = 16
LOCK_TIMEOUT_S = 20.0

ResultT = TypeVar("ResultT")
Draw = Callable[[], float]
"""A random number from 0 to 1."""

_log = structlog.get_logger()


class Routes(msgspec.Struct, frozen=True):
    """The processes of the node that use its identity."""

    manager: Upstream
    worker: Upstream


class CertificateRenewal:
    """Give `run` and `follow_news` to a supervisor."""

    def __init__(
        self, node: LocalNode, routes: Routes, roles: RoleSwitch, *, clock: Clock, draw: Draw
    ) -> None:
        self._node = node
        self._roles = roles
        self._routes = routes
        self._clock = clock
        self._draw = draw
        self._planned: NodeIdentity | None = None
        self._fraction = RENEW_FRACTION_MAX
        self._told: NodeIdentity | None = None
        self._confirmed: NodeIdentity | None = None
        self._asked_for: NodeIdentity | None = None
        self._backoff = Backoff(min_s=RETRY_MIN_S, max_s=RETRY_MAX_S)

    def renew_soon(self) -> None:
        """Replace key and certificate, as soon as a manager serves it."""
        self._asked_for = self._node.membership.identity
        self._node.changed.set()

    async def run(self) -> None:
        """Renew and confirm whenever it is time, until cancelled."""
        while True:
            identity = self._node.membership.identity
            wait_s = LOOK_PERIOD_S
            if identity is not None and not self._node.changing:
                wait_s = await self._turn(identity)
            raise_if_cancelled()
            await self._node.changed.wait(wait_s)

    async def follow_news(self) -> None:
        """Do what the managers ask through the worker's session, until cancelled."""
        while True:
            try:
                async with aclosing(worker_client.watch_membership(self._routes.worker)) as news:
                    async for item in news:
                        await self._learn(item)
            except SwarmError as error:
                _log.debug("membership.no_news", reason=error.message)
            raise_if_cancelled()
            await asyncio.sleep(NEWS_RETRY_S)

    async def _turn(self, identity: NodeIdentity) -> float:
        """One look. Result: seconds until the next."""
        if self._told is None or self._told.peer.node_id != identity.peer.node_id:
            self._told = identity  # the processes read it when they started, or joined with it
        if identity is not self._planned:
            spread = RENEW_FRACTION_MAX - RENEW_FRACTION_MIN
            self._planned = identity
            self._fraction = RENEW_FRACTION_MIN + spread * self._draw()
        left_s = (identity.renew_at_ns(self._fraction) - self._clock.now_ns()) / NS_PER_S
        try:
            if left_s <= 0 or self._asked_for is identity:
                await self._replace(identity, await self._renew(identity))
                self._node.renewal_problem = ""
                left_s = 0.0
            elif identity is not self._told:
                await self._tell(identity)
                left_s = 0.0
            elif identity is not self._confirmed:
                await self._first(lambda at: ca_client.confirm(at, identity))
                self._confirmed = identity
        except SwarmError as error:
            if self._clock.now_ns() >= identity.renew_at_ns(self._fraction):
                self._node.renewal_problem = error.message
            pause_s = self._backoff.next_s(self._draw())
            _log.warning("certificate.not_renewed", reason=error.message, pause_s=round(pause_s, 1))
            return min(pause_s, max(left_s, RETRY_MIN_S / 2))
        self._backoff.reset()
        return min(left_s, LOOK_PERIOD_S)

    # -- renewing ------------------------------------------------------------------------------

    async def _renew(self, identity: NodeIdentity) -> NodeIdentity:
        if identity.peer.role is Role.MANAGER:
            try:
                return await ca_client.renew_locally(self._routes.manager, identity)
            except SwarmError as error:
                _log.info("certificate.not_renewed_here", reason=error.message)
        if identity.not_after_ns <= self._clock.now_ns():
            return await self._first(lambda at: ca_client.renew_expired(at, identity))
        return await self._first(lambda at: ca_client.renew_as_member(at, identity))

    async def _first(self, ask: Callable[[str], Awaitable[ResultT]]) -> ResultT:
        """The first answer of a manager. Raises what they all failed with."""
        failures: dict[str, str] = {}
        for address in self._node.membership.managers[:MANAGERS_TRIED_MAX]:
            try:
                return await ask(address)
            except SwarmError as error:
                failures.setdefault(error.message, address)
        reasons = "; ".join(f"{address}: {text}" for text, address in failures.items())
        raise Unavailable(f"no manager serves the certificate: {reasons or 'none is known'}")

    async def _replace(self, old: NodeIdentity, new: NodeIdentity) -> None:
        """Store another generation of the identity; a new manager's is locked as all are."""
        lock = None
        if (old.peer.role, new.peer.role) == (Role.WORKER, Role.MANAGER):
            cluster = ClusterClient(self._node.membership.managers[:MANAGERS_TRIED_MAX], new)
            lock = await cluster.wanted_lock(timeout_s=LOCK_TIMEOUT_S)
        write = asyncio.create_task(asyncio.to_thread(self._node.renew_blocking, old, new, lock))
        try:
            written = await asyncio.shield(write)
        except asyncio.CancelledError:
            await asyncio.wait([write])  # the next swarmd finds it whole
            raise
        except OSError as error:
            raise Unavailable(f"the identity cannot be written: {error}") from error
        if written:  # else the node left the cluster meanwhile
            _log.info(
                "identity.replaced",
                role=new.peer.role,
                renewed=new.certificate_pem != old.certificate_pem,
                not_after_s=new.not_after_ns // NS_PER_S,
            )

    async def _tell(self, new: NodeIdentity) -> None:
        """Let the processes use what was stored; a manager that was not one yet is started."""
        switched = await self._roles.follow()
        keys = self._node.lock.keys
        if new.peer.role is Role.MANAGER and not switched:
            await manager_client.reload_identity(self._routes.manager, keys)
        await worker_client.reload_identity(self._routes.worker, keys)
        self._told = new

    # -- what the managers say -----------------------------------------------------------------

    async def _learn(self, news: MembershipNews) -> None:
        identity = self._node.membership.identity
        if identity is None or self._node.changing:
            return
        try:
            if news.managers:
                await asyncio.to_thread(self._node.learn_managers_blocking, news.managers)
            asked = news.renew or (news.desired_role is NodeRole.MANAGER) != (
                identity.peer.role is Role.MANAGER
            )
            believed = _believed(identity, news.root_pem)
            if believed is not identity:
                await self._replace(identity, believed)
                self._node.changed.set()
            if asked or believed.root_pem != merge_roots(news.root_pem):
                # Not whatever the node has by now: that may be what was asked for.
                self._asked_for = believed
                self._node.changed.set()
        except (SwarmError, OSError) as error:
            _log.warning("membership.not_learned", reason=str(error))


def _believed(identity: NodeIdentity, root_pem: bytes) -> NodeIdentity:
    """The identity with the roots of the news; the same object if nothing changes.

    If they no longer vouch for the certificate, the old roots are kept beside them until it is
    renewed.
    """
    if not root_pem:
        return identity
    try:
        changed = identity.with_roots(merge_roots(root_pem))
    except SwarmError:
        changed = identity.with_roots(merge_roots(identity.root_pem, root_pem))
    return identity if changed.root_pem == merge_roots(identity.root_pem) else changed
