"""`swarmd`: the command line of the node daemon. Runs in the foreground, logs JSON on stderr.

Exit codes: 0 stopped by SIGTERM or SIGINT; 1 a bug of ours (a broken invariant); 2 the command
line is wrong; 3 the environment refuses: not root, a directory or an address is in use.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # read by gRPC when it is first imported

import asyncio
import signal
import socket
import sys
from pathlib import Path

import click
import structlog

from shoal.errors import InvalidArgument, InvariantViolation, SwarmError
from shoal.telemetry import logs
from swarmd.app import Daemon
from swarmd.prepare import require_root
from swarmd.settings import VERSION, DaemonSettings, make_paths
from worker.agent.devices import read_pool
from worker.images.registry.places import check_registries
from worker.images.water import check_marks
from worker.runtime import remap

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_ENVIRONMENT = 3

_log = structlog.get_logger()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/var/lib/shoal"),
    show_default=True,
    help="Directory of what must survive a reboot.",
)
@click.option(
    "--run-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/run/shoal"),
    show_default=True,
    help="Directory of the sockets.",
)
@click.option("--hostname", default="", help="Name of this node.  [default: the machine's]")
@click.option(
    "--cgroup-parent",
    default="/shoal",
    show_default=True,
    help="Control group of the containers, from the root of each hierarchy.",
)
@click.option(
    "--metrics-addr",
    default="127.0.0.1:9323",
    show_default=True,
    help='HOST:PORT of /metrics, /healthz and /readyz; "" for none.',
)
@click.option(
    "--docker-addr",
    default="",
    help="HOST:PORT of the Docker API over TLS, for clients with a certificate.  [default: none]",
)
@click.option(
    "--docker-tls",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory with ca.pem (who may use --docker-addr), cert.pem and key.pem.",
)
@click.option(
    "--insecure-registry",
    multiple=True,
    metavar="HOST[:PORT]|SUBNET",
    help="Registry that may show any certificate or speak plain HTTP; repeatable."
    "  [always: 127.0.0.0/8, ::1]",
)
@click.option(
    "--registry-mirror",
    multiple=True,
    metavar="URL",
    help="Asked before docker.io for its images; repeatable.",
)
@click.option(
    "--image-high-water",
    type=click.IntRange(1, 100),
    default=90,
    show_default=True,
    metavar="PERCENT",
    help="Above this, unused images that a registry has are removed. 100: never.",
)
@click.option(
    "--image-low-water",
    type=click.IntRange(1, 100),
    default=80,
    show_default=True,
    metavar="PERCENT",
    help="Down to this.",
)
@click.option(
    "--userns-remap",
    default="",
    metavar="default|USER[:GROUP]",
    help="Give containers the subordinate ids of this user (/etc/subuid, /etc/subgid), so that"
    " their root is nobody on the node; default: of dockremap.  [default: the node's own ids]",
)
@click.option(
    "--selinux-enabled",
    is_flag=True,
    help="Give containers SELinux labels of their own (docker run --security-opt label=...,"
    " -v ...:z and :Z); the kernel must run SELinux, with a policy that knows containers.",
)
@click.option(
    "--ingress-ipv6/--no-ingress-ipv6",
    default=True,
    show_default=True,
    help="Answer IPv6 clients on published ports, and give tasks IPv6 addresses for it. Makes the"
    " node forward IPv6 packets. Where the node has no IPv6 it is off.",
)
@click.option(
    "--generic-resource",
    multiple=True,
    metavar="KIND=COUNT|KIND=NAME",
    help="What the node has for services to reserve (gpu=2, or the names gpu=UUID1, gpu=UUID2);"
    " tasks find theirs in $DOCKER_RESOURCE_KIND. Repeatable.",
)
@click.option(
    "--generic-device",
    multiple=True,
    metavar="KIND[=NAME],DEVICE[,DEVICE...]",
    help="Devices of the node that tasks get with a generic resource, as gpu=UUID1,/dev/nvidia0;"
    " DEVICE is PATH[:PATH-INSIDE][:rwm]. Repeatable.",
)
@click.option(
    "--log-level", type=click.Choice(list(logs.LEVELS)), default="info", show_default=True
)
@click.option(
    "--store",
    default="",
    metavar="URL",
    envvar="SHOAL_STORE",
    show_envvar=True,
    help="Where a manager on this node keeps the cluster's state:"
    " etcd://HOST:PORT,.../PREFIX[?cacert=FILE&cert=FILE&key=FILE&user=NAME&password_file=FILE]."
    "  [default: as before; on a new node a log of its own]",
)
@click.option(
    "--force-new-cluster",
    is_flag=True,
    help="Go on as the only manager, with everything this one knows. For once, when the majority"
    " of the managers is lost for good.",
)
@click.version_option(VERSION, prog_name="swarmd")
def main(
    *,
    state_dir: Path,
    run_dir: Path,
    hostname: str,
    cgroup_parent: str,
    metrics_addr: str,
    docker_addr: str,
    docker_tls: Path | None,
    insecure_registry: tuple[str, ...],
    registry_mirror: tuple[str, ...],
    image_high_water: int,
    image_low_water: int,
    userns_remap: str,
    selinux_enabled: bool,
    ingress_ipv6: bool,
    generic_resource: tuple[str, ...],
    generic_device: tuple[str, ...],
    log_level: str,
    store: str,
    force_new_cluster: bool,
) -> None:
    """Run the node daemon of Shoal until SIGTERM.

    Its containers run on when it stops. Exit codes: 0 stopped, 1 a bug, 2 wrong usage,
    3 not root, or a directory or address is in use.
    """
    if (
        not cgroup_parent.startswith("/")
        or cgroup_parent == "/"
        or ".." in cgroup_parent.split("/")
    ):
        raise click.BadParameter(
            f"{cgroup_parent!r} must be an absolute path below the root",
            param_hint="--cgroup-parent",
        )
    if bool(docker_addr) != (docker_tls is not None):
        raise click.UsageError("--docker-addr and --docker-tls need each other")
    try:
        check_registries(insecure_registry, registry_mirror)
        check_marks(image_high_water, image_low_water)
        remap.read(userns_remap)
        read_pool(generic_resource, generic_device)
    except InvalidArgument as error:
        raise click.UsageError(error.message) from error
    logs.configure("swarmd", log_level)
    settings = DaemonSettings(
        paths=make_paths(state_dir, run_dir),
        hostname=hostname or socket.gethostname(),
        cgroup_parent=cgroup_parent,
        metrics_address=metrics_addr,
        docker_address=docker_addr,
        docker_tls=None if docker_tls is None else docker_tls.absolute(),
        insecure_registries=insecure_registry,
        registry_mirrors=registry_mirror,
        image_water=(image_high_water, image_low_water),
        userns_remap=userns_remap,
        selinux_enabled=selinux_enabled,
        ingress_ipv6=ingress_ipv6,
        generic_resources=generic_resource,
        generic_devices=generic_device,
        log_level=log_level,
        force_new_cluster=force_new_cluster,
        store=store,
    )
    sys.exit(_run(settings))


def _run(settings: DaemonSettings) -> int:
    try:
        require_root()
        asyncio.run(serve(Daemon(settings)))
    except InvalidArgument as error:
        _log.error("node.not_started", reason=error.message)
        return EXIT_USAGE
    except SwarmError as error:
        _log.error("node.not_started", reason=error.message)
        return EXIT_ENVIRONMENT
    except InvariantViolation as error:
        _log.critical("node.broken", reason=str(error))
        return EXIT_BUG
    return 0


async def serve(daemon: Daemon) -> None:
    """Run the daemon until SIGTERM or SIGINT. Raises SwarmError, InvariantViolation."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    async with daemon:
        waits = [asyncio.create_task(stopped.wait()), asyncio.create_task(daemon.wait_failed())]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in waits:
                task.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


if __name__ == "__main__":
    main()
