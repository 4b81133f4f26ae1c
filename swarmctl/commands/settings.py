"""cluster inspect, update: the settings of the whole cluster (docker's `swarm update`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from shoal.model.enums import PlacementStrategy
from shoal.model.specs import ClusterSpec
from shoal.model.types import ExternalCa
from swarmctl import output
from swarmctl.commands.locking import print_unlock_command, with_new_key
from swarmctl.lazy import Lazy, LazyGroup
from swarmctl.options import Parsed, Word, autolock_option, given, inspect_format_option
from swarmctl.parsing.external import parse_external_ca
from swarmctl.parsing.units import parse_count, parse_duration
from swarmctl.render.clusters import cluster_json, cluster_text
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

NONE = "none"
DURATION = Parsed("duration", parse_duration)


def _count(name: str) -> Parsed:
    return Parsed("count", lambda text: parse_count(text, name=name))


def _external_ca(text: str) -> ExternalCa | None:
    return None if text == NONE else parse_external_ca(text)


@click.group(
    cls=LazyGroup,
    members={
        "backup": Lazy(
            "swarmctl.commands.backup:backup", "Write all that the cluster stores into a file"
        ),
        "restore": Lazy(
            "swarmctl.commands.backup:restore",
            "Make this node the first manager of a cluster in a backup",
        ),
        "transfer-leadership": Lazy(
            "swarmctl.commands.leadership:transfer_leadership", "Let another manager lead"
        ),
    },
)
def cluster() -> None:
    """Settings, backup and leadership of the cluster."""


@cluster.command()
@inspect_format_option
@click.option("--pretty", is_flag=True, help="For people")
@click.pass_obj
def inspect(session: Session, template: str, *, pretty: bool) -> None:
    """Show the cluster and its settings; never its keys."""
    if pretty and template:
        raise click.UsageError("--pretty and --format exclude each other: give one of them")

    async def work(client: Client) -> None:
        found = await client.cluster()
        if pretty:
            output.write(cluster_text(found))
        else:
            output.write(output.objects_text([cluster_json(found)], template))

    session.run(work)


@cluster.command()
@click.option(
    "--task-history-limit", type=int, help="Dead tasks kept per slot (default 5; -1: all)"
)
@click.option("--dispatcher-heartbeat", type=DURATION, help="Time between heartbeats of a node")
@click.option(
    "--external-ca",
    "external_cas",
    type=Parsed("spec", _external_ca),
    multiple=True,
    help="Authority that certifies nodes with the root's key, in place of those before: "
    "protocol=cfssl,url=https://HOST[:PORT][/PATH][,cacert=FILE]; none: no longer any",
)
@click.option("--cert-expiry", type=DURATION, help="Validity of node certificates (default 2160h)")
@click.option(
    "--network-key-rotation",
    type=DURATION,
    help="How long nodes use one key on encrypted networks (default 12h)",
)
@click.option(
    "--snapshot-interval",
    type=_count("the interval"),
    help="Log entries between snapshots (default 10000)",
)
@click.option(
    "--placement-strategy",
    type=Word(*PlacementStrategy),
    help="Of services that name none: spread (default) or binpack, to the fullest nodes",
)
@click.option(
    "--rebalance-interval",
    type=Parsed("duration", parse_duration),
    help="Move up to 5 tasks to emptier nodes in each such time; 0: never (default)",
)
@click.option(
    "--managers",
    type=_count("the number of managers"),
    help="Promote spare workers while fewer managers than this are reachable (0: never)",
)
@autolock_option
@click.pass_obj
def update(session: Session, /, **flags: Any) -> None:
    """Change settings of the cluster; what is not given stays as it is."""
    changes = given(flags)

    async def work(client: Client) -> None:
        found = await client.cluster()
        spec = _changed(found.spec, changes)
        key = ""
        if spec.autolock_managers and not found.spec.autolock_managers:
            key = await with_new_key(lambda key: client.update_cluster(found, spec, unlock_key=key))
        elif spec != found.spec:
            await client.update_cluster(found, spec)
        click.echo("Swarm updated.")
        if key:
            print_unlock_command(key)

    session.run(work)


def _changed(spec: ClusterSpec, changes: dict[str, Any]) -> ClusterSpec:
    orchestration, dispatcher, ca, raft = spec.orchestration, spec.dispatcher, spec.ca, spec.raft
    for name, value in changes.items():
        match name:
            case "task_history_limit":
                orchestration = orchestration.replaced(task_history_retention_limit=value)
            case "dispatcher_heartbeat":
                dispatcher = dispatcher.replaced(heartbeat_period_ns=value)
            case "external_cas":
                ca = ca.replaced(external_cas=tuple(one for one in value if one is not None))
            case "cert_expiry":
                ca = ca.replaced(node_certificate_validity_ns=value)
            case "network_key_rotation":
                spec = spec.replaced(network=spec.network.replaced(key_rotation_ns=value))
            case "snapshot_interval":
                raft = raft.replaced(snapshot_interval=value)
            case "placement_strategy":
                orchestration = orchestration.replaced(placement_strategy=value)
            case "rebalance_interval":
                orchestration = orchestration.replaced(rebalance_interval_ns=value or None)
            case "managers":
                raft = raft.replaced(managers_wanted=value)
            case "autolock":
                spec = spec.replaced(autolock_managers=value)
            case _:
                raise NotImplementedError(name)
    return spec.replaced(orchestration=orchestration, dispatcher=dispatcher, ca=ca, raft=raft)
