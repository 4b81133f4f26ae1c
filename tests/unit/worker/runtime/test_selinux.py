"""Labels: options, what they default to, and categories that are never given twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    Unimplemented,
)
from worker.runtime.api import ContainerConfig, Mount
from worker.runtime.labelling import SELinux, check_relabel
from worker.runtime.selinux import (
    PAIRS,
    Label,
    Labels,
    Wish,
    free_level,
    labels_of,
    like,
    policy_of,
    wish_of,
)

POLICY = policy_of(
    'process = "system_u:system_r:container_t:s0"\n'
    "content = system_u:object_r:virt_var_lib_t:s0\n"
    'file = "system_u:object_r:container_file_t:s0"\n'
)


def test_the_policys_file_is_read():
    assert POLICY.process == Label("system_u", "system_r", "container_t", "s0")
    assert str(POLICY.file) == "system_u:object_r:container_file_t:s0"
    with pytest.raises(InvalidArgument, match="no label `file`"):
        policy_of('process = "a:b:c:s0"')


@pytest.mark.parametrize(
    ("options", "process", "mount"),
    [
        ((), "system_u:system_r:container_t:{}", "system_u:object_r:container_file_t:{}"),
        (
            ("type:x_t", "filetype:f_t"),
            "system_u:system_r:x_t:{}",
            "system_u:object_r:f_t:{}",
        ),
        (("user:u", "role:r"), "u:r:container_t:{}", "u:object_r:container_file_t:{}"),
        (("type:x_t", "disable"), "", "system_u:object_r:container_file_t:s0:c1022,c1023"),
    ],
)
def test_what_options_mean(options: tuple[str, ...], process: str, mount: str):
    level = "s0:c1,c2"
    expected = Labels(process.format(level), mount.format(level))
    assert labels_of(wish_of(options), POLICY, level) == expected


def test_a_level_that_was_asked_for_is_that_of_processes_and_files():
    labels = labels_of(wish_of(["level:s0:c100,c200"]), POLICY, "s0:c1,c2")
    assert labels.process.endswith("container_t:s0:c100,c200")
    assert labels.mount.endswith("container_file_t:s0:c100,c200")


@pytest.mark.parametrize(
    "option", ["type", "type:", "types:x", "level:c1", "level:s0:c1,", "type:a b", "user:a\n", ""]
)
def test_options_that_say_nothing_are_refused(option: str):
    with pytest.raises(InvalidArgument, match="bad label option"):
        wish_of([option])


def test_a_container_that_shares_is_labelled_as_the_other():
    other = labels_of(wish_of(("type:x_t", "filetype:f_t")), POLICY, "s0:c5,c6")
    assert labels_of(like(other), POLICY, "s0:c1,c2") == other
    assert like(Labels(mount="a:b:c:s0")) == Wish(disable=True)


@given(st.integers(0, PAIRS - 1), st.integers(1, 40))
def test_no_pair_is_given_twice_and_none_is_the_privileged_one(start: int, count: int):
    taken: set[str] = set()
    for _ in range(count):
        level = free_level(taken, start)
        low, high = (int(part.removeprefix("c")) for part in level.removeprefix("s0:").split(","))
        assert 0 <= low < high < 1022
        assert level not in taken
        taken.add(level)


def test_every_pair_is_a_different_one_and_then_there_is_none():
    every = {free_level(frozenset(), number) for number in range(PAIRS)}
    assert len(every) == PAIRS
    with pytest.raises(ResourceExhausted, match="remove containers"):
        free_level(every, 7)
    left = every - {"s0:c3,c900"}
    assert free_level(left, 7) == "s0:c3,c900"


def config(**fields: object) -> ContainerConfig:
    return ContainerConfig(id="c", layers=("/l",), args=("true",), **fields)


async def test_without_the_option_labels_are_refused_and_nothing_is_labelled(tmp_path: Path):
    selinux = SELinux(enabled=False)
    await selinux.open(tmp_path)
    assert await selinux.labels_for(config(selinux_labels=("disable",))) == Labels()
    with pytest.raises(Unimplemented, match=r"selinux_labels: .*--selinux-enabled"):
        await selinux.labels_for(config(selinux_labels=("type:x",)))
    await selinux.relabel((Mount("/t", source="/usr", relabel="shared"),), Labels())


async def test_the_option_is_refused_where_the_kernel_or_the_policy_has_nothing(tmp_path: Path):
    with pytest.raises(FailedPrecondition, match="this kernel runs no SELinux: boot it"):
        await SELinux(enabled=True, root=tmp_path).open(tmp_path)
    (tmp_path / "sys/fs/selinux").mkdir(parents=True)
    (tmp_path / "sys/fs/selinux/enforce").write_text("1")
    (tmp_path / "etc/selinux").mkdir(parents=True)
    (tmp_path / "etc/selinux/config").write_text("# SELINUXTYPE=x\nSELINUXTYPE=mine\n")
    with pytest.raises(FailedPrecondition, match="the policy 'mine' knows no containers"):
        await SELinux(enabled=True, root=tmp_path).open(tmp_path)


@pytest.mark.parametrize("source", ["/", "/usr", "/var/../etc/", "/tmp"])
def test_the_nodes_own_directories_are_not_relabelled(source: str):
    with pytest.raises(InvalidArgument, match="is not allowed"):
        check_relabel(Mount("/t", source=source, relabel="private"))
