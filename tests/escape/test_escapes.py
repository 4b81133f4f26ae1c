"""Known escapes against a real node: from inside, by the way a process starts, by `docker cp`."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.remapped import RemappedNode
from tests.integration.engine.seeded import ok
from tests.parity.image import add_file, write_rootfs
from worker.images.store import ImageStore

pytestmark = pytest.mark.root

ATTEMPTS = Path(__file__).parent / "attempts.py"
IMAGE = "escape"
PYTHON = ("/bin/python3", "-I", "-S")


@pytest.fixture(scope="module", params=["plain", "remapped"])
def node(request: pytest.FixtureRequest) -> Iterator[EngineNode]:
    """Twice: containers whose root is the node's, and those with ids of their own."""
    remapped = request.param == "remapped"
    made = RemappedNode() if remapped else EngineNode()
    try:
        _seed(made)
        made.start()
        yield made
    finally:
        made.close()


def _seed(node: EngineNode) -> None:
    archive = node.base / "rootfs.tar"
    write_rootfs(archive)
    with tarfile.open(archive, "a") as tar:
        add_file(tar, "attempts.py", ATTEMPTS.read_bytes())
        add_file(tar, "self", b"#!/proc/self/exe\n", mode=0o755)

    async def imported() -> None:
        store = await ImageStore.open(node.state / "images")
        await store.import_rootfs(archive, IMAGE)
        await store.aclose()

    asyncio.run(imported())


def _is_remapped(node: EngineNode) -> bool:
    return "name=userns" in node.docker_json("info")["SecurityOptions"]


def run(node: EngineNode, *arguments: str) -> str:
    return ok(node, "run", "--rm", "--network", "none", *arguments)


@pytest.mark.parametrize("more", [(), ("--user", "0:0", "--cap-add", "CHOWN")])
def test_every_attempt_from_inside_is_refused(node, more):
    results = json.loads(run(node, *more, IMAGE, *PYTHON, "/attempts.py"))
    assert len(results) == 15
    assert {name: text for name, text in results.items() if not text.startswith("refused")} == {}


def test_the_host_s_processes_are_seen_but_not_touched(node):
    """In the host's process namespace: no tracing, no memory, no root of another process."""
    if _is_remapped(node):
        ran = node.docker("create", "--pid", "host", IMAGE, "/bin/python3")
        assert "cannot share the host PID namespace" in ran.err
        return
    program = (
        "import os\n"
        f"for path in ('/proc/{os.getpid()}/root/etc', '/proc/{os.getpid()}/fd/0',"
        f" '/proc/{os.getpid()}/mem', '/proc/{os.getpid()}/cwd/'):\n"
        "    try:\n        os.close(os.open(path, os.O_RDONLY)); print('ESCAPED', path)\n"
        "    except PermissionError: print('refused')\n"
    )
    said = run(node, "--pid", "host", IMAGE, *PYTHON, "-c", program)
    assert said.split() == ["refused"] * 4


def digest_of_programs() -> str:
    """Whatever of the host a container's first moments run on."""
    real = Path(os.readlink(f"/proc/{os.getpid()}/exe"))
    return hashlib.sha256(real.read_bytes()).hexdigest()


OVERWRITE = """
import os, sys
for pid in [name for name in os.listdir('/proc') if name.isdigit()]:
    try:
        fd = os.open(f'/proc/{pid}/exe', os.O_PATH)
        found = os.readlink(f'/proc/{pid}/exe')
        os.open(f'/proc/self/fd/{fd}', os.O_WRONLY)
        print('ESCAPED', found)
    except OSError as error:
        print('refused', error.errno, found)
"""


def test_a_program_that_is_proc_self_exe_does_not_overwrite_the_host_s(node):
    """CVE-2019-5736: the runtime executes itself inside the container, as it starts and by exec."""
    before = digest_of_programs()
    for entry in ("/self", "/proc/self/exe"):
        ran = node.docker("run", "--rm", "--network", "none", IMAGE, entry, "-c", OVERWRITE)
        assert "ESCAPED" not in ran.out + ran.err, ran
    container = ok(node, "run", "-d", "--network", "none", IMAGE, *PYTHON, "-c",
                   "import time; time.sleep(1000)")  # fmt: skip
    try:
        for entry in ("/self", "/proc/self/exe"):
            ran = node.docker("exec", container, entry, "-c", OVERWRITE)
            assert "ESCAPED" not in ran.out + ran.err, ran
    finally:
        ok(node, "rm", "-f", container)
    assert digest_of_programs() == before


def test_no_working_directory_is_a_descriptor_of_the_host(node):
    """CVE-2024-21626: `/proc/self/fd/N` as the directory to begin in, for run and for exec."""
    container = ok(node, "run", "-d", "--network", "none", IMAGE, *PYTHON, "-c",
                   "import time; time.sleep(1000)")  # fmt: skip
    look = "import os; print(os.path.exists('../../../../../../proc/1/root/probe.py'), os.getcwd())"
    try:
        for number in range(3, 16):
            place = f"/proc/self/fd/{number}"
            ran = node.docker("run", "--rm", "--network", "none", "-w", place, IMAGE, *PYTHON, "-c",
                              look)  # fmt: skip
            assert ran.code != 0 or not ran.out.startswith("False"), ran
            ran = node.docker("exec", "-w", place, container, *PYTHON, "-c", look)
            assert ran.code != 0 or not ran.out.startswith("False"), ran
    finally:
        ok(node, "rm", "-f", container)


def test_copies_do_not_follow_links_out(node, tmp_path):
    (tmp_path / "secret").write_text("of the host")
    place = str(tmp_path)
    program = f"import os; os.symlink({place!r}, '/out'); os.symlink('/proc/1/root', '/up')"
    container = ok(node, "run", "-d", "--network", "none", IMAGE, *PYTHON, "-c",
                   f"{program}; import time; time.sleep(1000)")  # fmt: skip
    try:
        for name in ("/out/secret", f"/up{place}/secret"):
            ran = node.docker("cp", f"{container}:{name}", str(tmp_path / "got"))
            assert ran.code != 0, ran
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            add_file(tar, "out/planted", b"x")
            add_file(tar, f"../../../../..{place}/planted", b"x")
        subprocess.run(
            ["docker", "-H", f"unix://{node.socket}", "cp", "-", f"{container}:/"],
            input=archive.getvalue(), capture_output=True, check=False,
        )  # fmt: skip
        assert sorted(os.listdir(tmp_path)) == ["secret"]
    finally:
        ok(node, "rm", "-f", container)


OF_THE_MACHINE = (
    "release_agent", "kernel_helpers", "devices_of_the_machine", "files_by_handle",
    "processes_outside",
)  # fmt: skip


def test_every_capability_and_no_filter_reach_no_further_than_the_namespace(node):
    """With ids of its own, root may mount inside what it likes, and is nobody outside."""
    if not _is_remapped(node):
        pytest.skip("root inside is the node's: capabilities are what holds it")
    more = (
        "--cap-add", "ALL", "--security-opt", "seccomp=unconfined",
        "--security-opt", "apparmor=unconfined",
    )  # fmt: skip
    results = json.loads(run(node, *more, IMAGE, *PYTHON, "/attempts.py"))
    assert results["mount_file_systems"].startswith("ESCAPED"), "nothing was tried"
    found = {name: results[name] for name in OF_THE_MACHINE}
    assert {name: text for name, text in found.items() if not text.startswith("refused")} == {}
