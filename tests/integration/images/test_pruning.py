"""A disk that fills up: what a registry has and nobody uses goes, until it is low enough."""

from __future__ import annotations

import os

import pytest

from shoal.clock import SystemClock
from tests.integration.images.conftest import SETTINGS
from tests.integration.images.tars import member, tar
from tests.integration.images.test_store import mounted
from tests.support.fakes import FakeClock
from tests.support.registry import MISSING, REGISTRY, a_registry
from worker.images.model import User
from worker.images.pruning import Collector, measure
from worker.images.store import ImageStore
from worker.images.water import AGE_MIN_NS, Marks

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(REGISTRY is None, reason=MISSING),
]


async def test_images_go_from_the_high_to_the_low_mark(tmp_path):
    with (
        a_registry(tmp_path / "registry") as address,
        mounted("tmpfs", tmp_path / "small", "size=40m"),
    ):
        store = await ImageStore.open(tmp_path / "small/s", settings=SETTINGS)
        names = [f"{address}/i{number}:1" for number in range(5)]
        path = tmp_path / "a.tar"
        for name in (*names, "ours"):  # each takes three megabytes twice
            path.write_bytes(tar(member("f", os.urandom(3_000_000))))
            await store.import_rootfs(path, name)
            if name != "ours":
                await store.registry.push(name)
        users = {store.resolve(names[0]).id: [User("c", running=False)]}
        clock = FakeClock(SystemClock().now_ns())

        async def who():
            return users

        collector = Collector(store, who, Marks(60, 40), clock)
        assert measure(store.root).used_percent > 60
        assert await collector.collect() == ()  # they are too fresh
        clock.advance(AGE_MIN_NS / 1e9 + 60)
        gone = await collector.collect()
        assert len(gone) == 4  # but not the one in use, and not the one only we have
        left = {tag for image in store.list() for tag in image.repo_tags}
        assert left == {names[0], "ours:latest"}
        assert measure(store.root).used_percent <= 40
        assert await collector.collect() == ()
        await store.aclose()
