"""Profiles of one's own: compiled for us, resolved for runtimes that compile their own."""

from __future__ import annotations

import ctypes
import os

import pytest

from tests.unit.worker.runtime.bpf import run_classic
from worker.runtime.lean.seccomp_build import compile_profile
from worker.runtime.profiles import resolved

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW, KILL_PROCESS, LOG = 0x7FFF0000, 0x80000000, 0x7FFC0000
READ, WRITE, MKDIR, PERSONALITY, NEWER = 0, 1, 83, 135, 4000

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")


@pytest.fixture(autouse=True)
def _library() -> None:
    try:
        ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp2 is not installed")


def _judge(profile, number, arguments=(), arch=X86_64):
    program = compile_profile(profile, {"CAP_CHOWN"}, "x86_64")
    return run_classic(program, arch=arch, number=number, args=arguments)


def test_what_is_named_is_refused_and_all_else_allowed():
    profile = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
        {"name": "write", "action": "SCMP_ACT_LOG"},
    ]}  # fmt: skip
    assert _judge(profile, MKDIR) == 0x00050000 | 95
    assert _judge(profile, WRITE) == LOG
    assert _judge(profile, READ) == ALLOW
    assert _judge(profile, NEWER) == ALLOW  # no stub before what allows


def test_default_actions():
    rules = [{"names": ["read", "personality"], "action": "SCMP_ACT_ALLOW"}]
    strict = {"defaultAction": "SCMP_ACT_KILL_PROCESS", "syscalls": rules}
    assert _judge(strict, READ) == ALLOW
    assert _judge(strict, WRITE) == KILL_PROCESS
    assert _judge(strict, NEWER) == 0x00050000 | 38  # the stub: newer than all it names
    odd = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 95, "syscalls": rules}
    assert _judge(odd, MKDIR) == 0x00050000 | 95


def test_one_argument_twice_means_either():
    either = [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"} for value in (0, 8)]
    rule = {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": either}
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [rule]}
    assert _judge(profile, PERSONALITY, (0,)) == ALLOW
    assert _judge(profile, PERSONALITY, (8,)) == ALLOW
    assert _judge(profile, PERSONALITY, (1,)) == 0x00050001


def test_architectures_are_those_the_profile_names():
    rules = [{"names": ["mkdir"], "action": "SCMP_ACT_ALLOW"}]
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules}
    i386_mkdir = 39
    assert _judge(profile, i386_mkdir, arch=I386) != ALLOW
    both = profile | {"architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]}
    assert _judge(both, i386_mkdir, arch=I386) == ALLOW
    mapped = profile | {"archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]},
    ]}  # fmt: skip
    assert _judge(mapped, i386_mkdir, arch=I386) == ALLOW


@pytest.mark.parametrize(
    "profile",
    [
        {"defaultAction": "SCMP_ACT_SING"},
        {"defaultAction": "SCMP_ACT_ALLOW", "flags": ["SECCOMP_FILTER_FLAG_LOG"]},
        {"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/x"},
        {"defaultAction": "SCMP_ACT_ALLOW",
         "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]},
    ],
)  # fmt: skip
def test_refused(profile):
    with pytest.raises(ValueError, match=r"flags|listenerPath|unknown action"):
        compile_profile(profile, set(), "x86_64")


def test_resolved_for_other_runtimes():
    profile = {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {"name": "bpf", "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "comment": "dropped"},
    ]}  # fmt: skip
    found = resolved(profile, ("CAP_CHOWN",), "x86_64", (6, 1))
    assert found["syscalls"] == [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
        {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
    ]
    assert (found["defaultAction"], found["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 38)
    assert "SCMP_ARCH_X86_64" in found["architectures"]
    with_it = resolved(profile, ("CAP_BPF",), "x86_64", (6, 1))
    assert {"action": "SCMP_ACT_ALLOW", "names": ["bpf"]} in with_it["syscalls"]
