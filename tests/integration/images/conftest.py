"""An image store in a directory of its own, closed and checked for leftovers after each test."""

from __future__ import annotations

import pytest_asyncio

from worker.images.model import StoreSettings, UnpackLimits
from worker.images.store import ImageStore

SETTINGS = StoreSettings(limits=UnpackLimits(free_bytes_reserve=0))


def leftovers(root):
    """Everything below the store's root that is not its fixed skeleton."""
    fixed = {
        "content", "content/blobs", "content/blobs/sha256", "content/ingest",
        "content/ingest/trash", "content/partial", "snapshots", "empty", "lock",
    }  # fmt: skip
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    return sorted(found - fixed)


@pytest_asyncio.fixture
async def store(tmp_path):
    opened = await ImageStore.open(tmp_path / "images", settings=SETTINGS)
    try:
        yield opened
    finally:
        await opened.aclose()


@pytest_asyncio.fixture
async def root(store, tmp_path):
    return tmp_path / "images"
