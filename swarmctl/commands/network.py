"""The network group: overlay networks, whose services reach each other across nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shoal.docker.networks import network_json
from shoal.errors import NotFound
from shoal.model.objects import Network
from shoal.model.specs import NetworkSpec
from shoal.model.types import Annotations, Driver, IpamOptions
from swarmctl import output
from swarmctl.complete import complete_networks
from swarmctl.each import each, exit_with
from swarmctl.filters import NETWORK_RULES, parse_filters
from swarmctl.options import (
    Parsed,
    filter_option,
    format_option,
    inspect_format_option,
    no_trunc_option,
    quiet_option,
)
from swarmctl.parsing.networks import subnet_configs
from swarmctl.parsing.values import parse_pair
from swarmctl.render.networks import NETWORK_COLUMNS, network_row
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

PAIR = Parsed("key=value", parse_pair)


@click.group()
def network() -> None:
    """Overlay networks of the cluster."""


@network.command("create")
@click.argument("name", metavar="NETWORK")
@click.option("-d", "--driver", default="overlay", help="Driver (default overlay, the only one)")
@click.option(
    "--subnet", "subnets", multiple=True, metavar="CIDR", help="Subnet (default: a free one)"
)
@click.option(
    "--gateway",
    "gateways",
    multiple=True,
    metavar="ADDRESS",
    help="Gateway (default: the subnet's first address)",
)
@click.option(
    "--ip-range",
    "ranges",
    multiple=True,
    metavar="CIDR",
    help="Part of the subnet that addresses are given from",
)
@click.option(
    "--aux-address",
    "reserved",
    multiple=True,
    type=PAIR,
    help="Address of the subnet to set aside, as router=10.1.0.9",
)
@click.option("--ipv6", is_flag=True, help="Addresses of IPv6 too")
@click.option("--internal", is_flag=True, help="No way out of the network")
@click.option("--attachable", is_flag=True, help="Containers may be attached by hand")
@click.option(
    "-o",
    "--opt",
    "options",
    multiple=True,
    type=PAIR,
    help="Driver option: com.docker.network.driver.mtu=BYTES",
)
@click.option("--label", "labels", multiple=True, type=PAIR, help="Label of the network")
@click.option("--ipam-driver", default="default", help="Address management (only default)")
@click.option("--ipam-opt", "ipam_options", multiple=True, type=PAIR, hidden=True)
@click.option("--scope", type=click.Choice(["swarm"]), default="swarm", hidden=True)
@click.option("--ingress", is_flag=True, hidden=True)
@click.option("--config-only", is_flag=True, hidden=True)
@click.option("--config-from", default="", hidden=True)
@click.pass_obj
def create(session: Session, /, name: str, **flags: Any) -> None:  # fmt: skip
    """Create an overlay network."""
    spec = _spec(name, flags)

    async def work(client: Client) -> None:
        from swarmctl.networks import create_network

        click.echo((await create_network(client, spec)).id)

    session.run(work)


@network.command("ls")
@filter_option
@format_option
@quiet_option
@no_trunc_option
@click.pass_obj
def list_all(
    session: Session, filters: tuple[str, ...], template: str, *, quiet: bool, no_trunc: bool
) -> None:
    """List networks.

    Filters: id, name, label, driver.
    """
    wanted = parse_filters(filters, NETWORK_RULES)

    async def work(client: Client) -> None:
        from swarmctl.networks import list_networks

        found = await list_networks(client, wanted)
        rows = [
            network_row(one, trunc=not no_trunc)
            for one in sorted(found, key=lambda row: row.spec.annotations.name)
        ]
        output.write(
            output.rows_text(rows, columns=NETWORK_COLUMNS, template=template, quiet=quiet)
        )

    session.run(work)


@network.command("inspect")
@click.argument(
    "names", nargs=-1, required=True, metavar="NETWORK...", shell_complete=complete_networks
)
@inspect_format_option
@click.option(
    "-v", "--verbose", is_flag=True, help="Services, tasks, containers and nodes on it too"
)
@click.pass_obj
def inspect(session: Session, names: tuple[str, ...], template: str, *, verbose: bool) -> None:
    """Show everything about networks."""

    async def work(client: Client) -> None:
        from swarmctl.endpoints import endpoint_versions
        from swarmctl.networks import get_network

        async def get(name: str) -> Network:
            return await get_network(client, name)

        networks, errors = await each(names, get)
        users: dict[str, Any] = {}
        if verbose and networks:
            users = {
                "services": [entry.service for entry in await client.services()],
                "tasks": await client.tasks(),
                "nodes": await client.nodes(),
                "versions": await endpoint_versions(client),
            }
        objects = [network_json(one, **users) for one in networks]
        output.write(output.objects_text(objects, template))
        exit_with(errors)

    session.run(work)


@network.command("rm")
@click.argument(
    "names", nargs=-1, required=True, metavar="NETWORK...", shell_complete=complete_networks
)
@click.option("-f", "--force", is_flag=True, help="No error when a network is not there")
@click.pass_obj
def remove(session: Session, names: tuple[str, ...], *, force: bool) -> None:
    """Remove networks that nobody uses."""

    async def work(client: Client) -> None:
        from swarmctl.networks import remove_network

        async def one(name: str) -> None:
            try:
                await remove_network(client, name)
            except NotFound:
                if not force:
                    raise
            else:
                click.echo(name)

        _, errors = await each(names, one)
        exit_with(errors)

    session.run(work)


def _spec(name: str, flags: dict[str, Any]) -> NetworkSpec:
    configs = subnet_configs(
        flags["subnets"], flags["gateways"], flags["ranges"], dict(flags["reserved"])
    )
    return NetworkSpec(
        annotations=Annotations(name=name, labels=dict(flags["labels"])),
        driver=Driver(name=flags["driver"], options=dict(flags["options"])),
        ipv6_enabled=flags["ipv6"],
        internal=flags["internal"],
        attachable=flags["attachable"],
        ingress=flags["ingress"],
        ipam=IpamOptions(
            driver=Driver(name=flags["ipam_driver"], options=dict(flags["ipam_options"])),
            configs=configs,
        ),
        config_from=flags["config_from"],
        config_only=flags["config_only"],
    )
