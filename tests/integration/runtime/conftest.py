"""A runtime of its own per test, on a small root made of the host's static busybox."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.runtime.site import Site

BUSYBOX = "/bin/busybox"


@pytest.fixture(scope="session")
def image_dir() -> AsyncIterator[str]:
    directory = tempfile.mkdtemp(prefix="shoal-image-", dir="/var/tmp")
    for name in ("bin", "etc", "tmp", "var/data", "lib", "home/app"):
        os.makedirs(f"{directory}/{name}")
    shutil.copy(BUSYBOX, f"{directory}/bin/busybox")
    applets = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True)
    for applet in applets.stdout.split():
        if applet != "busybox":
            os.symlink("busybox", f"{directory}/bin/{applet}")
    Path(f"{directory}/etc/passwd").write_text(
        "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
    )
    Path(f"{directory}/etc/group").write_text(
        "root:x:0:\napp:x:1000:\nmedia:x:2000:app\nwheel:x:2001:app\n"
    )
    Path(f"{directory}/bin/broken").write_text("not executable")
    os.symlink("/", f"{directory}/escape")
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
async def site(image_dir: str) -> AsyncIterator[Site]:
    directory = tempfile.mkdtemp(prefix="shoal-runtime-", dir="/var/tmp")
    place = Site(directory, image_dir)
    try:
        await place.runtime.ensure_running()
        yield place
    finally:
        async with asyncio.timeout(60):
            await place.destroy()
        shutil.rmtree(directory)
