"""The node that is compared: in a network of its own, with the recordings' image and registry."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.integration.engine.networked import NetworkedNode
from tests.integration.engine.seeded import ok
from tests.support.registry import a_registry

BUSYBOX = "/bin/busybox"
_DIRECTORIES = ("bin", "dev", "etc", "home", "proc", "root", "run", "sbin", "sys", "tmp", "usr",
                "var")  # fmt: skip


@contextmanager
def a_site() -> Iterator[tuple[NetworkedNode, str]]:
    """The node and the registry's address, while both run."""
    node = NetworkedNode()
    try:
        node.start()
        with a_registry(node.base / "registry", inside=node.prefix) as registry:
            ok(node, "rmi", "busybox")
            _import_busybox(node)
            _build_hello_world(node)
            yield node, registry
    finally:
        node.close()


def _import_busybox(node: NetworkedNode) -> None:
    """As it was recorded: `docker import` of a tree with nothing but busybox in it."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in _DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            tar.addfile(entry)
        tar.add(BUSYBOX, "bin/busybox")
        applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True)
        for name in applets.stdout.split():
            entry = tarfile.TarInfo(f"bin/{name}")
            entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
            if name != "busybox":
                tar.addfile(entry)
        for name, content in {
            "etc/passwd": b"root:x:0:0:root:/root:/bin/sh\n",
            "etc/group": b"root:x:0:\n",
        }.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    subprocess.run(
        ["docker", "-H", f"unix://{node.socket}", "import", "-c", 'CMD ["sh"]', "-", "busybox"],
        input=archive.getvalue(), check=True, capture_output=True,
    )  # fmt: skip


def _build_hello_world(node: NetworkedNode) -> None:
    """An image that says hello, of three steps and two names."""
    for name in ("hello-world:latest", "hello-world:linux"):
        subprocess.run(
            ["docker", "-H", f"unix://{node.socket}", "build", "-t", name, "-"],
            input=b'FROM busybox\nENV HELLO=world\nCMD ["echo", "Hello from Docker!"]\n',
            check=True, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip
