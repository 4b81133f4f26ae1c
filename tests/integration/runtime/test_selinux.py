"""Containers with SELinux labels: of processes, of every mount, of what is shared.

Needs a machine for nothing else, whose kernel runs SELinux and that has loaded no policy, and
Debian's selinux-policy-default: `python -m tests.vm --append "security=selinux selinux=1" -- ...`.
Debian's policy has no types for containers: a small module brings those the tests need. Building
that takes an emulated machine minutes, so it may be done before, by `semodule -n -p DIRECTORY -i`
over copies of /etc/selinux and /var/lib/selinux: `--env SHOAL_SELINUX_POLICY=` names the result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from shoal.errors import InvalidArgument
from tests.integration.runtime.site import Site
from worker.runtime.api import IdMap, IdRange, Mount
from worker.runtime.client import NativeRuntime
from worker.runtime.interactive import ExecConfig

SELINUX = Path("/sys/fs/selinux")
MODULE = Path(__file__).with_name("containers.cil")
PROCESS = "system_u:system_r:container_t:s0:"
FILE = "system_u:object_r:container_file_t:s0"


def _is_ours_to_load() -> bool:
    try:
        own = Path("/proc/self/attr/current").read_text()
    except OSError:  # no security module
        return False
    return SELINUX.exists() and own.strip("\0\n") == "kernel"


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not _is_ours_to_load(), reason="this kernel runs no SELinux, or has a policy already"
    ),
    pytest.mark.skipif(shutil.which("semodule", path="/usr/sbin") is None, reason="no semodule"),
]


@pytest.fixture(scope="module", autouse=True)
def policy() -> None:
    """The policy is loaded, with types for containers."""
    if not (SELINUX / "enforce").exists():
        subprocess.run(["mount", "-t", "selinuxfs", "selinuxfs", SELINUX], check=True)
    if built := os.environ.get("SHOAL_SELINUX_POLICY"):
        with (SELINUX / "load").open("wb", buffering=0) as file:
            file.write(Path(built).read_bytes())
        return
    subprocess.run(["/usr/sbin/load_policy"], check=True)
    subprocess.run(["/usr/sbin/semodule", "-i", MODULE], check=True)


class LabelledSite(Site):
    def another_client(self) -> NativeRuntime:
        return NativeRuntime(
            state_dir=f"{self.directory}/state", run_dir=f"{self.directory}/run",
            cgroup_parent=self.cgroup_parent, selinux=True,
        )  # fmt: skip


@pytest.fixture
async def labelled(image_dir: str) -> AsyncIterator[LabelledSite]:
    directory = tempfile.mkdtemp(prefix="shoal-runtime-", dir="/var/tmp")
    place = LabelledSite(directory, image_dir)
    try:
        await place.runtime.ensure_running()
        yield place
    finally:
        await place.destroy()
        shutil.rmtree(directory)


@pytest.fixture
def shared() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="shoal-shared-", dir="/var/tmp"))
    (directory / "below").mkdir()
    (directory / "below/file").touch()
    (directory / "link").symlink_to("/etc/passwd")
    yield directory
    shutil.rmtree(directory)


def process_label(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().strip("\0\n")


def label_of(path: Path | str) -> str:
    return os.getxattr(path, "security.selinux", follow_symlinks=False).decode().strip("\0")


PLACES = (
    "", "dev", "dev/shm", "dev/pts", "dev/null", "etc/hosts", "etc/resolv.conf", "tmpfs",
    "sys/firmware",
)  # fmt: skip
"""What is made for a container, and must be labelled as its own."""


async def test_processes_and_mounts_have_the_containers_own_label(labelled: LabelledSite):
    container = await labelled.start("sleep 600", mounts=(Mount(target="/tmpfs", kind="tmpfs"),))
    pid = (await labelled.runtime.status(container)).pid
    process = process_label(pid)
    level = process.removeprefix(PROCESS)
    assert process.startswith(PROCESS)
    assert level.count("c") == 2
    labels = {place: label_of(f"/proc/{pid}/root/{place}") for place in PLACES}
    assert labels == dict.fromkeys(PLACES, f"{FILE}:{level}")
    found = await labelled.runtime.confinement(container)
    assert (found.process_label, found.mount_label) == (process, f"{FILE}:{level}")


async def test_no_two_have_the_same_and_a_new_worker_knows(labelled: LabelledSite):
    levels = set()
    for number in range(6):
        runtime = labelled.runtime if number < 3 else labelled.another_client()
        await runtime.ensure_running()
        config = labelled.config("true")
        await runtime.create(config)
        levels.add((await runtime.confinement(config.id)).process_label)
        assert len(runtime.selinux._labels) == number + 1
        await runtime.close()
    assert len(levels) == 6


async def test_a_container_keeps_its_label_and_exec_enters_it(labelled: LabelledSite):
    container = await labelled.start("sleep 600", selinux_labels=("level:s0:c7,c9",))
    command = ExecConfig(args=("cat", "/proc/self/attr/current"))
    channel = await labelled.runtime.exec_start(container, "e1", command)
    output = b"".join([data async for _, data in channel.output()])
    await channel.close()
    assert output.decode().strip("\0\n") == f"{PROCESS}c7,c9"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"privileged": True}, None),
        ({"selinux_labels": ("disable",)}, None),
        ({"pid_mode": "host"}, None),
        ({"selinux_labels": ("type:container_kvm_t",)}, "container_kvm_t"),
        ({"no_new_privileges": True, "user": "app"}, "container_t"),
    ],
)
async def test_what_options_do(
    labelled: LabelledSite, fields: dict[str, object], expected: str | None
):
    _, output = await labelled.run("cat /proc/self/attr/current; echo", **fields)
    own = Path("/proc/self/attr/current").read_text().strip("\0\n").split(":")[2]
    assert output.strip("\0\n").split(":")[2] == (expected or own)


async def test_a_container_with_ids_of_its_own(labelled: LabelledSite):
    ranges = (IdRange(0, 200_000, 65536),)
    container = await labelled.start("sleep 600", userns=IdMap(ranges, ranges))
    pid = (await labelled.runtime.status(container)).pid
    assert process_label(pid).startswith(PROCESS)
    for place in ("", "dev", "dev/null", "etc/hosts"):
        assert label_of(f"/proc/{pid}/root/{place}").startswith(f"{FILE}:c"), place


async def test_binds_are_relabelled_when_asked(labelled: LabelledSite, shared: Path):
    for relabel, suffix in (("", None), ("shared", ""), ("private", ":c7,c9")):
        before = label_of(shared / "below/file")
        mount = Mount(target="/data", source=str(shared), relabel=relabel)
        await labelled.run("true", mounts=(mount,), selinux_labels=("level:s0:c7,c9",))
        expected = before if suffix is None else FILE + suffix
        assert label_of(shared / "below/file") == expected
        assert suffix is None or label_of(shared / "link") == expected
        assert not label_of("/etc/passwd").startswith(FILE)


async def test_the_nodes_own_directories_are_not_relabelled(labelled: LabelledSite):
    mount = Mount(target="/data", source="/var/../usr", relabel="shared")
    with pytest.raises(InvalidArgument, match="SELinux relabeling of"):
        await labelled.runtime.create(labelled.config("true", mounts=(mount,)))
    assert not labelled.runtime.selinux.knows("c1")


async def test_labels_that_the_policy_has_not_are_refused(labelled: LabelledSite):
    with pytest.raises(InvalidArgument, match=r"the policy has no label .*:nonsense_t:"):
        await labelled.runtime.create(labelled.config("true", selinux_labels=("type:nonsense_t",)))
    assert not labelled.runtime.selinux.knows("c1")


async def test_private_files_are_kept_from_other_containers(labelled: LabelledSite, shared: Path):
    """The kernel enforces it: the only test that is not in permissive mode."""
    (shared / "below/file").write_text("mine\n")
    private = (Mount(target="/data", source=str(shared), relabel="private"),)
    plain = (Mount(target="/data", source=str(shared)),)
    owner = ("level:s0:c7,c9",)
    await labelled.run("true", mounts=private, selinux_labels=owner)
    (SELINUX / "enforce").write_text("1")
    try:
        read = "cat /data/below/file 2>&1; echo x >/data/below/new && echo wrote"
        _, mine = await labelled.run(read, mounts=plain, selinux_labels=owner)
        _, others = await labelled.run(read, mounts=plain, selinux_labels=("level:s0:c7,c8",))
    finally:
        (SELINUX / "enforce").write_text("0")
    assert mine == "mine\nwrote\n"
    assert "Permission denied" in others
    assert "wrote" not in others


@pytest.mark.parametrize("name", ["crun", "runc"])
async def test_installed_runtimes_set_it_too(labelled: LabelledSite, name: str):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    _, output = await labelled.run("tr -d '\\0' </proc/self/attr/current", runtime=name)
    assert output.startswith(PROCESS)
