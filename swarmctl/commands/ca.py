"""ca: the root certificate of the cluster, and its replacement."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shoal.model.objects import Cluster
from shoal.model.types import ExternalCa
from swarmctl.options import Parsed
from swarmctl.parsing.external import parse_external_ca, read_pem
from swarmctl.parsing.units import parse_duration
from swarmctl.session import Session

if TYPE_CHECKING:
    from swarmctl.client import Client

__all__ = ["ca"]

POLL_PERIOD_S = 1.0


@click.command(short_help="Show or replace the root certificate")
@click.option("--rotate", is_flag=True, help="Replace the root; without files a new one is made")
@click.option(
    "--ca-cert", type=click.Path(path_type=Path), metavar="FILE", help="PEM of the new root"
)
@click.option(
    "--ca-key", type=click.Path(path_type=Path), metavar="FILE", help="PEM of its key (P-256)"
)
@click.option(
    "--cert-expiry",
    type=Parsed("duration", parse_duration),
    help="Validity of node certificates from now on",
)
@click.option(
    "--external-ca",
    "external",
    type=Parsed("spec", parse_external_ca),
    multiple=True,
    help="Who holds the root's key: protocol=cfssl,url=https://HOST[:PORT][/PATH]; in place of "
    "--ca-key",
)
@click.option("-d", "--detach", is_flag=True, help="Do not wait until every node has renewed")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress")
@click.pass_obj
def ca(
    session: Session,
    ca_cert: Path | None,
    ca_key: Path | None,
    cert_expiry: int | None,
    external: tuple[ExternalCa, ...],
    *,
    rotate: bool,
    detach: bool,
    quiet: bool,
) -> None:
    """Show the cluster's root certificate, or replace it.

    During a replacement both roots are believed; the old one and all join tokens are dropped when
    every node has a certificate of the new one.
    """
    if not rotate and (ca_cert or ca_key or external or cert_expiry is not None or detach or quiet):
        raise click.UsageError("the other flags go with --rotate")
    if external and not ca_cert:
        raise click.UsageError(
            "rotating to an external CA requires --ca-cert, its root certificate: to add one for "
            "the present root use `swarmctl cluster update --external-ca`"
        )
    certificate, key = _read(ca_cert), _read(ca_key)

    async def work(client: Client) -> None:
        if not rotate:
            await _show(client)
            return
        if cert_expiry is not None:
            cluster = await client.cluster()
            spec_ca = cluster.spec.ca.replaced(node_certificate_validity_ns=cert_expiry)
            await client.update_cluster(cluster, cluster.spec.replaced(ca=spec_ca))
        started = await client.rotate_root(certificate, key, external)
        if detach:
            return
        await _wait(client, started, quiet=quiet)
        click.echo((await client.cluster()).root_ca.certificate.decode(), nl=False)

    session.run(work)


def _read(path: Path | None) -> bytes:
    return b"" if path is None else read_pem(path)


async def _show(client: Client) -> None:
    cluster = await client.cluster()
    click.echo(cluster.root_ca.certificate.decode(), nl=False)
    if cluster.root_ca.rotation is not None:
        click.echo(cluster.root_ca.rotation.ca_certificate.decode(), nl=False)
        click.echo(f"A root rotation is under way: {await _progress(client, cluster)}.", err=True)


async def _wait(client: Client, started: Cluster, *, quiet: bool) -> None:
    shown, cluster = "", started
    while cluster.root_ca.rotation is not None:
        if not quiet:
            text = await _progress(client, cluster)
            if text != shown:
                click.echo(text, err=True)
                shown = text
        await asyncio.sleep(POLL_PERIOD_S)
        cluster = await client.cluster()
    if not quiet:
        click.echo("The root was replaced. Join tokens are new: `swarmctl join-token`.", err=True)


async def _progress(client: Client, cluster: Cluster) -> str:
    from shoal.security.trust import key_id

    rotation = cluster.root_ca.rotation
    if rotation is None:
        return "done"
    wanted = key_id(rotation.ca_certificate)
    nodes = await client.nodes()
    missing = [
        node.description.hostname or node.id
        for node in nodes
        if node.certificate is None or node.certificate.issuer_key_id != wanted
    ]
    done = f"{len(nodes) - len(missing)} of {len(nodes)} nodes have renewed"
    if not missing:
        return done
    names = ", ".join(sorted(missing)[:3]) + (", ..." if len(missing) > 3 else "")
    return f"{done}, missing: {names}" + (f"; {rotation.message}" if rotation.message else "")
