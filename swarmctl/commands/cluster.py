"""init, join, leave, info, version: this node and the cluster it belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shoal.docker.words import spell
from shoal.errors import SwarmError
from shoal.model.enums import NodeAvailability
from swarmctl import VERSION, output
from swarmctl.commands.locking import print_unlock_command
from swarmctl.options import Parsed, Word, autolock_option, inspect_format_option
from swarmctl.parsing.external import parse_external_ca
from swarmctl.parsing.units import parse_count, parse_duration
from swarmctl.render.info import info_json, info_text
from swarmctl.session import Session
from swarmctl.types import InitOptions, JoinOptions, NodeInfo

if TYPE_CHECKING:
    from swarmctl.client import Client

__all__ = ["info", "init", "join", "leave", "version"]

AVAILABILITY = Word(*NodeAvailability)
DURATION = Parsed("duration", parse_duration)


EXTERNAL_HINT = (
    "The root of the external authority becomes the swarm's, and join tokens are new, when it has\n"
    "certified this node: 'swarmctl ca' shows whether it has. Then get the command to add a node\n"
    "with 'swarmctl join-token worker'.\n"
)


def _snapshot_interval(text: str) -> int:
    return parse_count(text, name="the interval")


@click.command(short_help="Make a new cluster of this node")
@click.option(
    "--advertise-addr",
    default="",
    metavar="ADDR",
    help="Address other nodes dial: IP[:PORT] or INTERFACE[:PORT]",
)
@click.option(
    "--listen-addr", default="", metavar="ADDR", help="Address to listen at (default 0.0.0.0:2377)"
)
@click.option(
    "--availability",
    type=AVAILABILITY,
    default="active",
    help="Availability of this node (default active)",
)
@click.option(
    "--data-path-addr",
    default="",
    metavar="ADDR",
    help="Address or interface of the containers' traffic",
)
@click.option(
    "--data-path-port",
    type=int,
    default=0,
    metavar="PORT",
    help="UDP port of that traffic, 1024 to 49151 (default 7789)",
)
@click.option(
    "--task-history-limit", type=int, help="Dead tasks kept per slot (default 5; -1: all)"
)
@click.option(
    "--dispatcher-heartbeat", type=DURATION, help="Time between heartbeats (default 250ms to 1s)"
)
@click.option(
    "--external-ca",
    "external_cas",
    type=Parsed("spec", parse_external_ca),
    multiple=True,
    help="Authority that certifies nodes: protocol=cfssl,url=https://HOST[:PORT][/PATH],cacert=FILE",
)
@click.option("--cert-expiry", type=DURATION, help="Validity of node certificates (default 2160h)")
@click.option(
    "--snapshot-interval",
    type=Parsed("count", _snapshot_interval),
    help="Log entries between snapshots (default 10000)",
)
@click.option(
    "--ingress-pool",
    default="",
    metavar="CIDR",
    help="Addresses of the routing mesh (default 10.240.0.0/12)",
)
@click.option(
    "--default-addr-pool",
    "default_address_pools",
    multiple=True,
    metavar="CIDR",
    help="Where networks get their subnets from (default 10.0.0.0/8)",
)
@click.option(
    "--default-addr-pool-mask-length",
    type=click.IntRange(min=0),
    default=0,
    metavar="LENGTH",
    help="Mask length of these subnets (default 24)",
)
@autolock_option
@click.pass_obj
def init(session: Session, /, **flags: Any) -> None:
    """Make a new cluster of this node, with it as the first manager."""
    options = InitOptions(
        advertise_address=flags["advertise_addr"],
        listen_address=flags["listen_addr"],
        availability=flags["availability"],
        data_path_address=flags["data_path_addr"],
        data_path_port=flags["data_path_port"],
        task_history_retention_limit=flags["task_history_limit"],
        dispatcher_heartbeat_period_ns=flags["dispatcher_heartbeat"],
        node_certificate_validity_ns=flags["cert_expiry"],
        snapshot_interval=flags["snapshot_interval"],
        ingress_pool=flags["ingress_pool"],
        default_address_pools=flags["default_address_pools"],
        default_address_pool_mask_length=flags["default_addr_pool_mask_length"],
        autolock=bool(flags["autolock"]),
        external_cas=flags["external_cas"],
    )

    async def work(client: Client) -> None:
        result = await client.init(options)
        click.echo(f"Swarm initialized: current node ({result.node_id}) is now a manager.\n")
        command = join_command(result.worker_token, result.advertise_address)
        click.echo(
            EXTERNAL_HINT
            if options.external_cas
            else f"To add a worker to this swarm, run the following command:\n\n    {command}\n\n"
            "To add a manager to this swarm, run 'swarmctl join-token manager' and follow the "
            "instructions.\n"
        )
        if result.unlock_key:
            print_unlock_command(result.unlock_key)

    session.run(work, target=session.target())


@click.command(short_help="Let this node join a cluster")
@click.argument("addresses", nargs=-1, required=True, metavar="HOST:PORT...")
@click.option("--token", required=True, help="Join token of a worker or manager")
@click.option("--advertise-addr", default="", metavar="ADDR", help="Address other nodes dial")
@click.option(
    "--listen-addr", default="", metavar="ADDR", help="Address to listen at (default 0.0.0.0:2377)"
)
@click.option(
    "--availability",
    type=AVAILABILITY,
    default="active",
    help="Availability of this node (default active)",
)
@click.option(
    "--data-path-addr",
    default="",
    metavar="ADDR",
    help="Address or interface of the containers' traffic",
)
@click.pass_obj
def join(session: Session, /, addresses: tuple[str, ...], **flags: Any) -> None:
    """Let this node join the cluster whose manager is at HOST:PORT.

    Several addresses are tried in order.
    """
    options = JoinOptions(
        remote_addresses=addresses,
        token=flags["token"],
        advertise_address=flags["advertise_addr"],
        listen_address=flags["listen_addr"],
        availability=flags["availability"],
        data_path_address=flags["data_path_addr"],
    )

    async def work(client: Client) -> None:
        role = await client.join(options)
        click.echo(f"This node joined a swarm as a {spell(role)}.")

    session.run(work, target=session.target())


@click.command(short_help="Let this node leave its cluster")
@click.option("-f", "--force", is_flag=True, help="Leave although the cluster may lose its quorum")
@click.pass_obj
def leave(session: Session, *, force: bool) -> None:
    """Let this node leave its cluster; its tasks are stopped."""

    async def work(client: Client) -> None:
        await client.leave(force=force)
        click.echo("Node left the swarm.")

    session.run(work, target=session.target())


@click.command(short_help="Show the node and its cluster")
@inspect_format_option
@click.pass_obj
def info(session: Session, template: str) -> None:
    """Show what the daemon says of its node and cluster."""
    target = session.target()

    async def work(client: Client) -> NodeInfo:
        return await client.info()

    node = session.run(work, target=target)
    if template:
        output.write(output.objects_text([info_json(node)], template))
        return
    output.write(info_text(node, host=target.host, context=target.context))


@click.command(short_help="Show versions")
@inspect_format_option
@click.pass_obj
def version(session: Session, template: str) -> None:
    """Show the versions of the client and of the daemon, if it can be reached."""

    async def work(client: Client) -> NodeInfo:
        return await client.info()

    failure: SwarmError | None = None
    server = ""
    try:
        server = session.run(work).version
    except SwarmError as error:
        failure = error
    if template:
        versions: dict[str, Any] = {"Client": {"Version": VERSION}, "Server": None}
        if server:
            versions["Server"] = {"Version": server}
        output.write(output.objects_text([versions], template))
    else:
        click.echo(f"Client: {VERSION}" + (f"\nServer: {server}" if server else ""))
    if failure is not None:
        raise failure


def join_command(token: str, address: str) -> str:
    """The command that joins a node."""
    return f"swarmctl join --token {token} {address}"
