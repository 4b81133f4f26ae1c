"""What every command gets: which daemon to talk to, and a way to run a coroutine against it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, TypeVar

from swarmctl import contexts
from swarmctl.target import Choice, Target, choose

if TYPE_CHECKING:
    from swarmctl.client import Client

ResultT = TypeVar("ResultT")


class Session:
    """The choice of a daemon, made when it is first needed."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice

    def target(self, node: str | None = None) -> Target:
        """The chosen daemon; with `node`, that of one node of the context."""
        target = choose(self.choice, os.environ, contexts.load())
        return target.node(node, self.choice) if node else target

    def targets(self, node: str | None = None) -> dict[str, Target]:
        """Every node of the context by name; the chosen daemon under "" if it lists none."""
        target = self.target()
        if node:
            return {node: target.node(node, self.choice)}
        if not target.nodes:
            return {"": target}
        return {name: target.node(name, self.choice) for name in sorted(target.nodes)}

    def run(
        self,
        work: Callable[[Client], Awaitable[ResultT]],
        *,
        target: Target | None = None,
    ) -> ResultT:
        """Run `work` with a client of the chosen daemon, or of exactly that one.

        Where the context names several managers, the first that serves is taken. What concerns
        the node itself (`leave`) must name its target: it is never done to another one instead.
        """
        if target is not None:
            return asyncio.run(_with_client(target, work))
        return asyncio.run(_with_serving(self.target(), work))


async def _with_serving(target: Target, work: Callable[[Client], Awaitable[ResultT]]) -> ResultT:
    if target.others:
        from swarmctl.client import serves  # here: see below

        if not await serves(target):
            # All the others at once: one that is frozen must not hold up the next.
            found = await asyncio.gather(*map(serves, target.others))
            ready = [one for one, good in zip(target.others, found, strict=True) if good]
            return await _with_client(ready[0] if ready else target, work)
    return await _with_client(target, work)


async def _with_client(target: Target, work: Callable[[Client], Awaitable[ResultT]]) -> ResultT:
    from swarmctl.client import Client  # here: help and completion must not load gRPC

    async with Client(target) as client:
        return await work(client)


def choice_of(flags: Mapping[str, str | None]) -> Choice:
    """The choice in the root command's flags."""
    return Choice(
        host=flags.get("host") or "",
        context=flags.get("context") or "",
        tls_ca=flags.get("tlscacert") or "",
        tls_certificate=flags.get("tlscert") or "",
        tls_key=flags.get("tlskey") or "",
    )
