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
from tests.support.registry import MISSING, REGISTRY, a_registry
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

PULLING = """
import asyncio, pathlib, sys
from tests.integration.images.conftest import SETTINGS
from worker.images.store import ImageStore
async def main():
    store = await ImageStore.open(pathlib.Path(sys.argv[1]), settings=SETTINGS)
    print("open", flush=True)
    while True:
        (image,) = await store.registry.pull(sys.argv[2])
        await store.commit(sys.argv[3], image, b"{}", name="made")
        for name in ("made", sys.argv[2]):
            await store.remove(name, users={})
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
    await killed_often(BUSY, tmp_path / "images", paths, times=6)


@pytest.mark.skipif(REGISTRY is None, reason=MISSING)
async def test_killed_in_a_pull_or_a_commit(tmp_path):
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "g").write_bytes(os.urandom(150_000))
    with a_registry(tmp_path / "registry") as address:
        store = await ImageStore.open(tmp_path / "seed", settings=SETTINGS)
        path = tmp_path / "a.tar"
        path.write_bytes(
            docker_save([tar(member(f"f{i}", os.urandom(150_000))) for i in range(4)], ["web:1"])
        )
        await store.load(path)
        await store.tag("web:1", f"{address}/web:1")
        await store.registry.push(f"{address}/web:1")
        await store.aclose()
        await killed_often(
            PULLING, tmp_path / "images", [f"{address}/web:1", str(upper)], times=3, longest_s=1.5
        )


async def killed_often(program, root, arguments, *, times, longest_s=0.6):
    """Run the program on the store and kill it at some moment, again and again."""
    moments = random.Random(20_261_124)
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(root), *arguments],
            stdout=subprocess.PIPE,
            cwd=CHECKOUT,
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"open\n"
            time.sleep(
                moments.uniform(0.05, longest_s)
            )  # any moment is right: the check is the same
        finally:
            process.kill()
            process.communicate()
        store = await ImageStore.open(root, settings=SETTINGS)
        try:
            await store.gc()
            whole(store, root)
        finally:
            await store.aclose()
