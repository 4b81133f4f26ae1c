"""Requests and records as tests need them."""

from __future__ import annotations

from typing import Any

from engine.containers import checks, defaults, mounts, networking
from engine.containers.container import Container
from engine.containers.records import Record
from engine.containers.requests import CreateRequest, HostConfig
from worker.images.model import ImageConfig
from worker.images.oci import Platform
from worker.runtime.api import ContainerStatus

FACTS = checks.NodeFacts(
    cpus=4, cgroup_version=1, platform=Platform(os="linux", architecture="amd64")
)
ID = "ab" * 32


def record_of(
    host: HostConfig | None = None, image: ImageConfig | None = None, **asked: Any
) -> Record:
    """What `create` would keep. Raises what it would raise."""
    filled = defaults.with_host_defaults(host or HostConfig())
    asked.setdefault("cmd", ["true"])
    request = CreateRequest(image="busybox", host_config=filled, **asked)
    config = defaults.with_image(request, image or ImageConfig())
    command = defaults.command_of(config)
    checks.check(config, filled, command, FACTS)
    return Record(
        id=ID,
        name="web",
        created_at_ns=1,
        image_id="sha256:" + "1" * 64,
        image="busybox",
        path=command[0],
        args=command[1:],
        config=config.replaced(exposed_ports=networking.exposed(config, filled)),
        host=filled,
        networks=networking.wishes(config, filled, request.networking_config),
        mounts=mounts.plan(config, filled, lambda ref: ()),
    )


def container_of(state: str = "created", **status: Any) -> Container:
    """A container the runtime says this of."""
    record = record_of().replaced(started=state != "created")
    return Container(record, ContainerStatus(id=ID, state=state, **status))
