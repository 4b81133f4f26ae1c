"""The compiled default profile, judged call by call through a BPF interpreter."""

from __future__ import annotations

import ctypes
import json
import os
from pathlib import Path

import pytest

from tests.unit.worker.runtime.bpf import run_classic
from worker.runtime import launch
from worker.runtime.bundle import CAPABILITIES_DEFAULT
from worker.runtime.lean import seccomp_build

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026
X86_64, I386, X32_BIT = 0xC000003E, 0x40000003, 0x40000000

pytestmark = pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")


@pytest.fixture(scope="module")
def profile():
    return json.loads(Path(launch.__file__).with_name("seccomp_default.json").read_text())


@pytest.fixture(scope="module")
def library():
    try:
        loaded = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        pytest.skip("libseccomp2 is not installed")
    loaded.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    return loaded


@pytest.fixture(scope="module")
def program(profile, library):
    return seccomp_build.compile_profile(profile, set(CAPABILITIES_DEFAULT), "x86_64")


def _number(library, name: str) -> int:
    return library.seccomp_syscall_resolve_name(name.encode())


@pytest.mark.parametrize("name", ["read", "execve", "setresuid", "capset", "chroot", "openat2"])
def test_ordinary_calls_are_allowed(program, library, name):
    assert run_classic(program, arch=X86_64, number=_number(library, name)) == ALLOW


@pytest.mark.parametrize("name", ["mount", "unshare", "setns", "bpf", "keyctl", "kexec_load"])
def test_calls_that_need_a_missing_capability_are_refused(program, library, name):
    assert run_classic(program, arch=X86_64, number=_number(library, name)) == EPERM


def test_every_unconditional_name_is_allowed(program, library, profile):
    for rule in profile["syscalls"]:
        if set(rule) == {"names", "action"} and rule["action"] == "SCMP_ACT_ALLOW":
            for name in rule["names"]:
                number = _number(library, name)
                if number >= 0:
                    assert run_classic(program, arch=X86_64, number=number) == ALLOW, name


def test_clone_may_not_make_namespaces(program, library):
    clone = _number(library, "clone")
    new_user = 0x10000000
    assert run_classic(program, arch=X86_64, number=clone, args=(17,)) == ALLOW
    assert run_classic(program, arch=X86_64, number=clone, args=(17 | new_user,)) == EPERM


def test_clone3_and_unknown_calls_are_not_implemented(program):
    assert run_classic(program, arch=X86_64, number=435) == ENOSYS
    assert run_classic(program, arch=X86_64, number=9999) == ENOSYS
    assert run_classic(program, arch=X86_64, number=X32_BIT | 9999) == ENOSYS
    assert run_classic(program, arch=I386, number=9999) == ENOSYS


def test_a_foreign_architecture_kills(program):
    assert run_classic(program, arch=0xC00000B7, number=63) < 0x00050000


def test_capabilities_open_their_calls(profile, library):
    caps = {*CAPABILITIES_DEFAULT, "CAP_SYS_ADMIN"}
    wide = seccomp_build.compile_profile(profile, caps, "x86_64")
    assert run_classic(wide, arch=X86_64, number=_number(library, "mount")) == ALLOW
    assert run_classic(wide, arch=X86_64, number=435) == ALLOW
