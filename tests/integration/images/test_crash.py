"""Kill the owner of a store at any moment: what the index names is whole, the rest goes with gc."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.images.conftest import SETTINGS
from tests.integration.images.tars import digest, docker_save, member, tar
from worker.images.store import ImageStore

pytestmark = pytest.mark.root

CHECKOUT = Path(__file__).parents[3]
BUSY = """
import asyncio, pathlib, sys
from tests.integration.images.conftest import SETTINGS
from worker.images.store import ImageStore
async def main():
    store = await ImageStore.open(pathlib.Path(sys.argv[1]), settings=SETTINGS)
    print("open", flush=True)
    while True:
        for path in sys.argv[2:]:
            await asyncio.gather(*(store.load(pathlib.Path(path)) for _ in range(2)))
        for image in store.list()[1:]:
            await store.remove(image.id, users={}, force=True)
asyncio.run(main())
"""


def whole(store, root):
    """Every image's parts are there and unaltered, and nothing else is."""
    blobs, snapshots = set(), set()
    for image in store.list():
        blobs |= {image.id, image.digest, *(layer.blob_digest for layer in image.layers)}
        snapshots |= {layer.chain_id for layer in image.layers}
        for top in store.layers(image):
            (name,) = os.listdir(top)
            assert os.stat(os.path.join(top, name)).st_size == 150_000
    stored = root / "content/blobs/sha256"
    assert {digest(path.read_bytes()) for path in stored.iterdir()} == blobs
    assert {f"sha256:{path.name}" for path in stored.iterdir()} == blobs
    assert {f"sha256:{path.name}" for path in (root / "snapshots").iterdir()} == snapshots
    assert os.listdir(root / "content/ingest") == ["trash"]
    assert os.listdir(root / "content/ingest/trash") == []


async def test_killed_at_any_moment(tmp_path):
    layers = [tar(member(f"f{i}", os.urandom(150_000))) for i in range(5)]
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(docker_save(layers[number : number + 3], [f"web:{number}"]))
        paths.append(str(path))
    root = tmp_path / "images"
    moments = random.Random(20_261_124)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", BUSY, str(root), *paths],
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            time.sleep(moments.uniform(0.05, 0.6))  # any moment is right: the check is the same
        finally:
            process.kill()
            process.communicate()
        store = await ImageStore.open(root, settings=SETTINGS)
        try:
            await store.gc()
            whole(store, root)
        finally:
            await store.aclose()
