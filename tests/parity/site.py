"""A node that has the probe's image."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.integration.engine.daemon import EngineNode
from tests.parity.image import write_rootfs
from tests.parity.looking import IMAGE
from worker.images.store import ImageStore

DOCKER = shutil.which("docker") or "docker"


@contextmanager
def a_node(make: Callable[[], EngineNode] = EngineNode) -> Iterator[str]:
    """Its address, while it runs."""
    node = make()
    try:
        archive = node.base / "probe.tar"
        write_rootfs(archive)
        asyncio.run(_seed(node, archive))
        node.start()
        yield f"unix://{node.socket}"
    finally:
        node.close()


async def _seed(node: EngineNode, archive: Path) -> None:
    store = await ImageStore.open(node.state / "images")
    await store.import_rootfs(archive, IMAGE)
    await store.aclose()
