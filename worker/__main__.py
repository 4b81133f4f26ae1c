"""Entry of the worker process; started by swarmd, not by people."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before grpc is imported

import asyncio

import structlog

from shoal.errors import InvariantViolation, SwarmError
from shoal.security.lock import LockKeys
from shoal.settings.paths import NodePaths
from shoal.settings.process import die_with_parent, leave_reason, read_lock_keys
from shoal.telemetry.logs import LEVELS, configure
from worker.agent.devices import read_pool
from worker.app import Extension, WorkerSettings, run
from worker.images.registry.places import check_registries
from worker.images.water import Marks, check_marks
from worker.runtime import remap


def main() -> None:
    """Parse the arguments, run, and exit with 1 on any failure."""
    start(a_parser("worker", __doc__).parse_args())


def a_parser(program: str, description: str | None) -> argparse.ArgumentParser:
    """The arguments every form of the worker process takes."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--state-dir", type=Path, required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--log-level", choices=sorted(LEVELS), default="info")
    parser.add_argument("--hostname", required=True)
    parser.add_argument("--cgroup-parent", required=True)
    parser.add_argument("--insecure-registry", action="append", default=[])
    parser.add_argument("--registry-mirror", action="append", default=[])
    parser.add_argument("--image-high-water", type=int, default=Marks().high)
    parser.add_argument("--image-low-water", type=int, default=Marks().low)
    parser.add_argument("--userns-remap", default="")
    parser.add_argument("--selinux-enabled", action="store_true")
    parser.add_argument("--no-ingress-ipv6", action="store_true")
    parser.add_argument("--generic-resource", action="append", default=[])
    parser.add_argument("--generic-device", action="append", default=[])
    parser.add_argument("--parent-pid", type=int, default=0, help="end with this process")
    parser.add_argument(
        "--lock-keys-stdin", action="store_true", help="read the node's lock keys from there"
    )
    return parser


def start(arguments: argparse.Namespace, extension: Extension | None = None) -> None:
    """Run the process; exits with 1 on any failure, 70 when an invariant is broken."""
    if arguments.parent_pid:
        die_with_parent(arguments.parent_pid)
    configure("worker", arguments.log_level)
    log = structlog.get_logger()
    try:
        asyncio.run(run(_settings(arguments), extension))
    except SwarmError as error:
        log.error("worker.failed", reason=error.message, code=error.code.value)  # noqa: TRY400 - the message says it all
        leave_reason(arguments.run_dir, "worker", error.message)
        sys.exit(1)
    except InvariantViolation as error:
        log.critical("worker.broken", exc_info=error)
        sys.exit(70)


def _settings(arguments: argparse.Namespace) -> WorkerSettings:
    return WorkerSettings(
        paths=NodePaths(state=arguments.state_dir, run=arguments.run_dir),
        hostname=arguments.hostname,
        cgroup_parent=arguments.cgroup_parent,
        registries=check_registries(arguments.insecure_registry, arguments.registry_mirror),
        image_marks=check_marks(arguments.image_high_water, arguments.image_low_water),
        userns=remap.read(arguments.userns_remap),
        selinux=arguments.selinux_enabled,
        ingress_ipv6=not arguments.no_ingress_ipv6,
        pool=read_pool(arguments.generic_resource, arguments.generic_device),
        lock_keys=read_lock_keys() if arguments.lock_keys_stdin else LockKeys(),
    )


if __name__ == "__main__":
    main()
