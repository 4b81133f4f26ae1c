"""The node that is compared: in a network of its own, with the recordings' image and registry."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from tests.conformance.images import import_busybox
from tests.integration.engine.networked import NetworkedNode
from tests.integration.engine.seeded import ok
from tests.support.registry import a_registry


@contextmanager
def a_site() -> Iterator[tuple[NetworkedNode, str]]:
    """The node and the registry's address, while both run."""
    node = NetworkedNode()
    try:
        node.start()
        with a_registry(node.base / "registry", inside=node.prefix) as registry:
            ok(node, "rmi", "busybox")
            import_busybox(node.socket)
            _build_hello_world(node)
            yield node, registry
    finally:
        node.close()


def _build_hello_world(node: NetworkedNode) -> None:
    """An image that says hello, of three steps and two names."""
    for name in ("hello-world:latest", "hello-world:linux"):
        subprocess.run(
            ["docker", "-H", f"unix://{node.socket}", "build", "-t", name, "-"],
            input=b'FROM busybox\nENV HELLO=world\nCMD ["echo", "Hello from Docker!"]\n',
            check=True, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip
