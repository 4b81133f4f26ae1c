"""Containers under AppArmor: ours is there, is entered, holds, and is as strict as dockerd's.

Needs a kernel that runs it: `python -m tests.vm --append "apparmor=1 security=apparmor" -- ...`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.docker import docker as a_dockerd
from bench.docker import why_not
from shoal.errors import FailedPrecondition
from tests.integration.runtime.attempts import OUTSIDER, outcomes, script
from tests.integration.runtime.site import Site
from worker.runtime.interactive import ExecConfig

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
OURS = "shoal-default (enforce)"

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not ENABLED.exists() or not ENABLED.read_text().startswith("Y"),
        reason="this kernel runs no AppArmor",
    ),
]


@pytest.fixture
def outsider() -> Iterator[int]:
    """A process under no profile, of an ordinary user."""
    process = subprocess.Popen(["setpriv", "--reuid", "65534", "--clear-groups", "sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


async def test_who_runs_under_what(site: Site):
    current = "cat /proc/self/attr/current"
    for fields, profile in (
        ({}, OURS),
        ({"no_new_privileges": True, "user": "app", "cap_drop": ("ALL",)}, OURS),
        ({"apparmor_profile": "docker-default"}, OURS),
        ({"privileged": True}, "unconfined"),
        ({"apparmor_profile": "unconfined"}, "unconfined"),
    ):
        _, output = await site.run(current, **fields)
        assert output.strip("\n\0") == profile, fields


@pytest.mark.parametrize("name", ["crun", "runc"])
async def test_installed_runtimes_set_it_too(site: Site, name: str):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    _, output = await site.run("cat /proc/self/attr/current", runtime=name)
    assert output.strip("\n\0") == OURS


async def test_further_processes_enter_it(site: Site):
    container = await site.start("sleep 600")
    for privileged in (False, True):
        config = ExecConfig(args=("cat", "/proc/self/attr/current"), privileged=privileged)
        exec_id = f"e{int(privileged)}"
        channel = await site.runtime.exec_start(container, exec_id, config)
        output = b"".join([data async for _, data in channel.output()])
        await channel.close()
        assert output.decode().strip("\n\0") == OURS
    status = await site.runtime.stop(container, 10)
    assert status.exit_code in (143, 137)


async def test_a_profile_that_is_not_loaded_runs_nothing(site: Site):
    config = site.config("true", apparmor_profile="nobody-has-loaded-me")
    await site.runtime.create(config)
    with pytest.raises(FailedPrecondition, match="nobody-has-loaded-me: it is not loaded"):
        await site.runtime.start(config.id)


async def test_it_comes_back_when_somebody_has_unloaded_it(site: Site):
    subprocess.run(["apparmor_parser", "--remove"], input="profile shoal-default {}\n",
                   text=True, check=True)  # fmt: skip
    _, output = await site.run("cat /proc/self/attr/current")
    assert output.strip("\n\0") == OURS


async def test_it_holds_where_nothing_else_does(site: Site, outsider: int):
    told = await _ours(site, outsider)
    assert told.pop("profile") == OURS
    allowed = {name for name, outcome in told.items() if outcome == "allowed"}
    assert allowed >= {
        "write /proc/self/comm", "write /proc/self/oom_score_adj", "write into a group",
        "ask whether it lives", "signal a neighbour", "look at a neighbour", "umount",
        "make a file", "take an address",
    }  # fmt: skip
    assert {name for name in told if name not in allowed} >= {
        "mount tmpfs", "mount proc", "bind", "remount", "pivot", "read kcore", "press sysrq",
        "write /proc/sys/kernel/core_pattern", "write /proc/sys/net/ipv4/ip_forward",
        "write /sys/kernel/mm/transparent_hugepage/enabled", "signal outside", "look outside",
        "leave by name",
    }  # fmt: skip


async def test_it_refuses_what_dockers_refuses(site: Site, outsider: int):
    if missing := why_not():
        pytest.skip(missing)
    ours = await _ours(site, outsider)
    theirs = await _dockers(site, outsider)
    assert theirs.pop("profile") == "docker-default (enforce)"
    assert ours.pop("profile") == OURS
    assert ours == theirs


async def _ours(site: Site, outsider: int) -> dict[str, str]:
    _, output = await site.run(
        script(), privileged=True, apparmor_profile="shoal-default", pid_mode="host",
        env=("PATH=/bin", f"{OUTSIDER}={outsider}"),
    )  # fmt: skip
    return outcomes(output)


async def _dockers(site: Site, outsider: int) -> dict[str, str]:
    archive = Path(site.directory, "root.tar")
    subprocess.run(["tar", "-C", site.image_dir, "-cf", str(archive), "."], check=True)
    async with a_dockerd(swarm=False) as daemon:
        daemon.call("POST", "/images/create?fromSrc=-&repo=attempts", archive.read_bytes())
        docker = [shutil.which("docker") or "docker", "-H", f"unix://{daemon.path}"]
        options = [
            "--rm", "--privileged", "--security-opt", "apparmor=docker-default", "--pid", "host",
            "--network", "none", "-e", f"{OUTSIDER}={outsider}", "-e", "PATH=/bin",
        ]  # fmt: skip
        done = subprocess.run(
            [*docker, "run", *options, "attempts", "sh", "-c", script()],
            check=True, capture_output=True, text=True, timeout=120, env={**os.environ},
        )  # fmt: skip
    return outcomes(done.stdout)
