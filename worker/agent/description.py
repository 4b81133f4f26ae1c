"""What this node says of itself when it registers."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version

from shoal.model.types import (
    EngineDescription,
    GenericResource,
    NodeDescription,
    Platform,
    Resources,
)
from worker.images.model import Image

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


def names_of(images: Iterable[Image]) -> Iterator[str]:
    """What services may call the images that the node has, those that it was given last first."""
    for image in sorted(images, key=lambda one: (-one.tagged_at_ns, one.id)):
        yield from (*image.names, *image.repo_digests)


def describe_node(
    hostname: str,
    data_path_address: str,
    root_pem: bytes,
    *,
    ingress_ipv6: bool = False,
    generic: Sequence[GenericResource] = (),
) -> NodeDescription:
    """Hostname, platform, and capacity of the machine.

    ingress_ipv6: whether its data plane serves IPv6 clients. generic: what its operator says.
    """
    machine = platform.machine()
    return NodeDescription(
        hostname=hostname,
        platform=Platform(architecture=ARCHITECTURES.get(machine, machine), os="linux"),
        resources=Resources(
            nano_cpus=len(os.sched_getaffinity(0)) * 1_000_000_000,
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            generic=tuple(generic),
        ),
        engine=EngineDescription(engine_version=version("shoal")),
        trust_root=root_pem,
        data_path_address=data_path_address,
        ingress_ipv6=ingress_ipv6,
    )
