"""A real manager whose file system fails under it: a loop-mounted ext4 that breaks on demand.

Run inside a private mount namespace: `unshare -m --propagation private python -m
tests.integration.manager.failing_disk DIRECTORY FAULT`. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc

from shoal.api.v1 import control_pb2 as pb
from shoal.api.v1.control_pb2_grpc import ControlStub
from shoal.security.grpc_tls import local_channel
from shoal.wire.errors import from_rpc_error
from tests.integration.manager.process import DEADLINE_S, ManagerProcess
from tests.integration.power_cut import EXT4_IOC_SHUTDOWN, NO_LOG_FLUSH
from tests.integration.raft.test_processes import a_spec

IMAGE_BYTES = 200 << 20
SERVICES = 20


def fails_every_sync(mounted: Path) -> None:
    """From now on each operation ends with EIO."""
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
    finally:
        os.close(fd)


def becomes_read_only(mounted: Path) -> None:
    """The kernel finds damage and stops writing, as it does with `errors=remount-ro`."""
    found = subprocess.run(
        ["findmnt", "-n", "-o", "SOURCE", str(mounted)],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    device = Path(found.stdout.strip()).name
    Path("/sys/fs/ext4", device, "trigger_fs_error").write_text("1")


FAULTS = {"eio": fails_every_sync, "read-only": becomes_read_only}


@contextlib.contextmanager
def mounted_at(image: Path, place: Path, *options: str) -> Iterator[None]:
    """The disk, checked as at the start of a machine."""
    subprocess.run(["e2fsck", "-p", "-f", str(image)], check=False, timeout=30, capture_output=True)
    mount = ["mount", "-o", ",".join(("loop", "errors=remount-ro", *options)), str(image)]
    subprocess.run([*mount, str(place)], check=True, timeout=30)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True, timeout=30)


@contextlib.asynccontextmanager
async def serving(manager: ManagerProcess) -> AsyncIterator[ControlStub]:
    await manager.start_serving()
    async with local_channel(manager.paths.manager_socket) as channel:
        yield ControlStub(channel)


async def ended(manager: ManagerProcess) -> int:
    """The exit code."""
    assert manager.process is not None
    return await asyncio.to_thread(manager.process.wait, DEADLINE_S)


def create(control: ControlStub, name: str):
    return control.CreateService(pb.CreateServiceRequest(spec=a_spec(name)), timeout=DEADLINE_S)


async def error_of(call) -> str:
    """The class of the error that a client would see."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return type(from_rpc_error(error)).__name__
    return "none"


async def run(scratch: Path, fault: str) -> dict[str, object]:
    """Serve, break, end, mend, serve again."""
    image, place, directory = scratch / "disk.img", scratch / "mnt", scratch / "m"
    place.mkdir()
    directory.mkdir()
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True, timeout=30)
    (directory / "state").symlink_to(place / "state")
    acknowledged = {f"s{number}" for number in range(SERVICES)}
    with contextlib.ExitStack() as cleanup:
        with mounted_at(image, place):
            (place / "state").mkdir()
            manager = ManagerProcess(directory)
            cleanup.callback(manager.close)
            async with serving(manager) as control:
                await asyncio.gather(*(create(control, name) for name in acknowledged))
                FAULTS[fault](place)
                refused = await error_of(create(control, "refused"))
            code = await ended(manager)
        with mounted_at(image, place, "ro"):
            manager.start()
            code_at_start = await ended(manager)
        with mounted_at(image, place):
            async with serving(manager) as control:
                answer = await control.ListServices(pb.ListServicesRequest())
                found = {one.spec.annotations.name for one in answer.services}
                await create(control, "again")
            manager.stop()
    assert isinstance(answer, pb.ListServicesResponse)
    return {
        "lost": sorted(acknowledged - found),
        "refused": refused,
        "code": code,
        "code_at_start": code_at_start,
        "log": manager.log,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(Path(sys.argv[1]), sys.argv[2]))))
