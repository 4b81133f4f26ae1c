"""Completion of names the cluster has: asks the daemon, briefly, and never complains."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import click

from shoal.errors import SwarmError
from swarmctl.session import Session, choice_of

if TYPE_CHECKING:
    from swarmctl.client import Client

TIMEOUT_S = 1.0


def complete_services(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of services that start with what was typed."""

    async def names(client: Client) -> list[str]:
        return [entry.service.spec.annotations.name for entry in await client.services()]

    return _asked(ctx, names, incomplete)


def complete_nodes(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Host names of nodes that start with what was typed."""

    async def names(client: Client) -> list[str]:
        return [node.description.hostname for node in await client.nodes()]

    return _asked(ctx, names, incomplete)


def complete_networks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of networks that start with what was typed."""

    async def names(client: Client) -> list[str]:
        from swarmctl.networks import list_networks  # here: it needs the client

        return [network.spec.annotations.name for network in await list_networks(client)]

    return _asked(ctx, names, incomplete)


def complete_stacks(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of stacks that start with what was typed."""

    async def names(client: Client) -> list[str]:
        from swarmctl.stacks import list_stacks  # here: it needs the client

        return [one.name for one in await list_stacks(client)]

    return _asked(ctx, names, incomplete)


def complete_secrets(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of secrets that start with what was typed."""
    return _asked(ctx, _names_of_files("Secret"), incomplete)


def complete_configs(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of configs that start with what was typed."""
    return _asked(ctx, _names_of_files("Config"), incomplete)


def complete_join_tokens(ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of join tokens that start with what was typed."""

    async def names(client: Client) -> list[str]:
        return [token.name for token in (await client.cluster()).root_ca.join_tokens.extra]

    return _asked(ctx, names, incomplete)


def complete_contexts(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[str]:
    """Names of contexts that start with what was typed."""
    from swarmctl import contexts  # here: msgspec is only needed once a name is completed

    with contextlib.suppress(SwarmError):
        known = [contexts.DEFAULT_CONTEXT, *contexts.load().contexts]
        return sorted(name for name in known if name.startswith(incomplete))
    return []


def _names_of_files(kind: str) -> Callable[[Client], Awaitable[list[str]]]:
    async def names(client: Client) -> list[str]:
        from shoal.model.objects import Config, Secret  # here: they need msgspec, and the client
        from swarmctl.files import FileCalls

        if kind == "Secret":
            return [row.spec.annotations.name for row in await FileCalls(client, Secret).list()]
        return [row.spec.annotations.name for row in await FileCalls(client, Config).list()]

    return names


def _asked(
    ctx: click.Context, names: Callable[[Client], Awaitable[list[str]]], incomplete: str
) -> list[str]:
    async def briefly(client: Client) -> list[str]:
        async with asyncio.timeout(TIMEOUT_S):
            return await names(client)

    with contextlib.suppress(SwarmError, TimeoutError):
        found = Session(choice_of(ctx.find_root().params)).run(briefly)
        return sorted({name for name in found if name.startswith(incomplete)})
    return []
