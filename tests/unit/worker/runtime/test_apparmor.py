"""Who runs under which AppArmor profile, what ours forbids, and how it gets into the kernel."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal.errors import FailedPrecondition, Unimplemented
from worker.runtime.api import ContainerConfig
from worker.runtime.apparmor import DEFAULT, profile_of, text_of
from worker.runtime.confining import AppArmor


def config(**fields: object) -> ContainerConfig:
    return ContainerConfig(id="c", layers=("/l",), args=("true",), **fields)


@pytest.mark.parametrize(
    ("fields", "profile"),
    [
        ({}, DEFAULT),
        ({"privileged": True}, "unconfined"),
        ({"apparmor_profile": "unconfined"}, "unconfined"),
        ({"apparmor_profile": "mine"}, "mine"),
        ({"apparmor_profile": "docker-default"}, DEFAULT),
        ({"apparmor_profile": "docker-default", "privileged": True}, DEFAULT),
    ],
)
def test_who_runs_under_which_profile(fields: dict[str, object], profile: str):
    assert profile_of(config(**fields)) == profile


def denied(path: str, letter: str = "w") -> bool:
    """Whether a rule of the profile denies this access, as AppArmor reads its patterns."""
    for place, letters in re.findall(r"deny (/\S+) (\w+),", text_of("unconfined")):
        pattern = re.sub(r"\{(.*?)\}", lambda found: f"({found[1].replace(',', '|')})", place)
        if letter in letters and re.fullmatch(pattern.replace("**", ".*"), path):
            return True
    return False


@given(st.text("/skernlhmy0fgroup", min_size=1, max_size=20).map(lambda rest: f"/proc/{rest}"))
@example("/proc/sys/kernel/core_pattern")
@example("/proc/sys/net/ipv4/ip_forward")
@example("/proc/1/comm")
def test_only_what_is_a_process_is_written_to_in_proc(path: str):
    assert denied(path) == (not path[6].isdigit())


@given(st.text("/fscgroupux", min_size=1, max_size=14).map(lambda rest: f"/sys/{rest}"))
@example("/sys/kernel/uevent_helper")
@example("/sys/fs/cgroup/memory.max")
def test_only_control_groups_are_written_to_in_sys(path: str):
    if not "/sys/fs/cgroup".startswith(path):
        assert denied(path) == (not path.startswith("/sys/fs/cgroup"))


@pytest.mark.parametrize("path", ["/proc/kcore", "/proc/sysrq-trigger", "/sys/firmware/efi/x"])
def test_what_is_not_even_read(path: str):
    assert denied(path, "r")
    assert not denied("/proc/meminfo", "r")


def test_a_runtime_that_is_confined_itself_may_signal_its_containers():
    assert 'signal (receive) peer="/usr/bin/swarmd//engine",' in text_of("/usr/bin/swarmd//engine")
    assert r'peer="odd\*\"name",' in text_of('odd*"name')


class Machine:
    """A directory that looks like a node with AppArmor, and a parser that does as told."""

    def __init__(self, base: Path) -> None:
        self.root = base / "root"
        self.profiles = self.root / "sys/kernel/security/apparmor/profiles"
        self.profiles.parent.mkdir(parents=True)
        self.profiles.write_text("docker-default (enforce)\n")
        enabled = self.root / "sys/module/apparmor/parameters/enabled"
        enabled.parent.mkdir(parents=True)
        enabled.write_text("Y\n")
        self.bin = base / "bin"
        self.bin.mkdir()

    def install_parser(self, script: str) -> None:
        program = self.bin / "apparmor_parser"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    def install_loading_parser(self) -> None:
        name = r"s/^profile \([^ ]*\).*/\1 (enforce)/p"
        self.install_parser(f"sed -n '{name}' >>{self.profiles}")

    def apparmor(self) -> AppArmor:
        return AppArmor(self.root, str(self.bin))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


async def test_a_kernel_without_refuses_profiles_by_name(tmp_path: Path):
    apparmor = AppArmor(tmp_path)
    await apparmor.open()
    assert (apparmor.warning, apparmor.confines) == ("", False)
    assert await apparmor.profile_for(config()) == ""
    assert await apparmor.profile_for(config(apparmor_profile="unconfined")) == ""
    with pytest.raises(Unimplemented, match="apparmor_profile: AppArmor is not enabled"):
        await apparmor.profile_for(config(apparmor_profile="docker-default"))


async def test_without_a_parser_there_is_a_warning_and_no_profile(machine: Machine):
    apparmor = machine.apparmor()
    await apparmor.open()
    assert "install apparmor" in apparmor.warning
    assert not apparmor.confines
    assert await apparmor.profile_for(config()) == ""
    assert await apparmor.profile_for(config(apparmor_profile="mine")) == "mine"
    with pytest.raises(FailedPrecondition, match="install apparmor"):
        await apparmor.profile_for(config(apparmor_profile=DEFAULT))


async def test_the_profile_is_loaded_at_the_start_and_again_when_it_is_gone(machine: Machine):
    machine.install_loading_parser()
    apparmor = machine.apparmor()
    await apparmor.open()
    assert (apparmor.warning, apparmor.confines) == ("", True)
    assert machine.profiles.read_text().endswith(f"{DEFAULT} (enforce)\n")
    machine.profiles.write_text("")
    assert await apparmor.profile_for(config()) == DEFAULT
    assert machine.profiles.read_text() == f"{DEFAULT} (enforce)\n"
    assert await apparmor.profile_for(config()) == DEFAULT
    assert machine.profiles.read_text() == f"{DEFAULT} (enforce)\n"


async def test_a_parser_that_refuses_is_quoted_and_containers_are_refused(machine: Machine):
    machine.install_parser("cat >/dev/null; echo no such feature >&2; exit 1")
    apparmor = machine.apparmor()
    await apparmor.open()
    assert apparmor.warning.endswith("could not be loaded: no such feature")
    with pytest.raises(FailedPrecondition, match="no such feature"):
        await apparmor.profile_for(config())
    assert await apparmor.profile_for(config(privileged=True)) == "unconfined"
    machine.install_loading_parser()
    assert await apparmor.profile_for(config()) == DEFAULT
    assert apparmor.warning == ""
