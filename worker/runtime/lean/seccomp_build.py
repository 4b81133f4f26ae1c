"""Compiles the default seccomp profile into a BPF program, once per capability set.

Runs as a process of its own (`python -I -S -c BOOT root profile output caps…`) because libseccomp
must not live in the supervisor. Before the compiled filter stands a stub that answers ENOSYS, not
EPERM, to calls newer than the profile, so that C libraries fall back as they do under runc.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys

_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_OPTIMIZE, _OPTIMIZE_TREE = 8, 2
_ARCHES = {
    "x86_64": (0xC000003E, {"x86": 0x40000003, "x32": 0x4000003E}),
    "aarch64": (0xC00000B7, {"arm": 0x40000028}),
}
_PROFILE_NAMES = {"x86_64": {"amd64", "x86", "x32"}, "aarch64": {"arm64", "arm"}}
_OPERATORS = {
    "SCMP_CMP_NE": 1, "SCMP_CMP_LT": 2, "SCMP_CMP_LE": 3, "SCMP_CMP_EQ": 4, "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6, "SCMP_CMP_MASKED_EQ": 7,
}  # fmt: skip
_LOAD, _JEQ, _JGT, _JSET, _RET = 0x20, 0x15, 0x25, 0x45, 0x06
MISSING_LIBRARY = 3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _ArgCmp(ctypes.Structure):
    _fields_ = [
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    ]


def applies(rule: dict[str, Any], caps: set[str], machine: str, kernel: tuple[int, int]) -> bool:
    """Whether a profile rule holds for these capabilities on this machine and kernel."""
    includes, excludes = rule.get("includes", {}), rule.get("excludes", {})
    names = _PROFILE_NAMES[machine]
    if "minKernel" in includes:
        major, minor = includes["minKernel"].split(".")[:2]
        if kernel < (int(major), int(minor)):
            return False
    if not set(includes.get("caps", ())) <= caps:
        return False
    if includes.get("arches") and not names & set(includes["arches"]):
        return False
    if set(excludes.get("caps", ())) & caps:
        return False
    return not names & set(excludes.get("arches", ()))


def stub(machine: str, highest: dict[str, int]) -> bytes:
    """Instructions that answer ENOSYS to call numbers above `highest` (by architecture name)."""
    refuse = _ERRNO | 38
    native = _ARCHES[machine][0]
    if machine != "x86_64":
        program = [
            (_LOAD, 0, 0, 4), (_JEQ, 0, 3, native), (_LOAD, 0, 0, 0),
            (_JGT, 0, 1, highest["native"]), (_RET, 0, 0, refuse),
        ]  # fmt: skip
    else:
        program = [
            (_LOAD, 0, 0, 4), (_JEQ, 0, 4, native), (_LOAD, 0, 0, 0), (_JSET, 1, 0, 0x40000000),
            (_JGT, 4, 5, highest["native"]), (_JGT, 3, 4, highest["x32"]),
            (_JEQ, 0, 3, 0x40000003), (_LOAD, 0, 0, 0), (_JGT, 0, 1, highest["x86"]),
            (_RET, 0, 0, refuse),
        ]  # fmt: skip
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def compile_profile(profile: dict[str, Any], caps: set[str], machine: str) -> bytes:
    """The whole program. Raises: OSError when libseccomp is missing or refuses a rule."""
    library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    library.seccomp_init.restype = ctypes.c_void_p
    library.seccomp_init.argtypes = (ctypes.c_uint32,)
    for name in ("seccomp_attr_set", "seccomp_arch_add", "seccomp_export_bpf"):
        getattr(library, name).argtypes = (
            (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
            if name == "seccomp_attr_set"
            else (ctypes.c_void_p, ctypes.c_uint32)
        )
    library.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p,
    )  # fmt: skip
    library.seccomp_syscall_resolve_name_arch.argtypes = (ctypes.c_uint32, ctypes.c_char_p)
    native, others = _ARCHES[machine]
    context = library.seccomp_init(_action(profile["defaultAction"], 1))
    _check(library.seccomp_attr_set(context, _OPTIMIZE, _OPTIMIZE_TREE), "optimize")
    for name, token in others.items():
        _check(library.seccomp_arch_add(context, token), f"architecture {name}")
    kernel_words = os.uname().release.split(".")
    kernel = (int(kernel_words[0]), int(kernel_words[1]))
    highest = dict.fromkeys(("native", *others), 0)
    for rule in profile["syscalls"]:
        for name in rule["names"]:
            for arch, token in (("native", native), *others.items()):
                number = library.seccomp_syscall_resolve_name_arch(token, name.encode())
                highest[arch] = max(highest[arch], number)
            if applies(rule, caps, machine, kernel):
                _add_rule(library, context, rule, name)
    return stub(machine, highest) + _export(library, context)


def _add_rule(library: ctypes.CDLL, context: int, rule: dict[str, Any], name: str) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:
        return  # newer than this libseccomp: the stub answers
    action = _action(rule["action"], rule.get("errnoRet", 1))
    if action == _action("SCMP_ACT_ERRNO", 1):
        return  # already the default
    comparisons = [
        _ArgCmp(a["index"], _OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0))
        for a in rule.get("args", ())
    ]
    array = (_ArgCmp * len(comparisons))(*comparisons)
    result = library.seccomp_rule_add_array(
        context, action, number, len(comparisons), ctypes.addressof(array) if comparisons else None
    )
    _check(result, f"rule for {name}")


def _action(name: str, errno_value: int) -> int:
    return _ALLOW if name == "SCMP_ACT_ALLOW" else _ERRNO | errno_value


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(-result, os.strerror(-result), f"libseccomp: {what}")


def _export(library: ctypes.CDLL, context: int) -> bytes:
    fd = os.memfd_create("filter")
    _check(library.seccomp_export_bpf(context, fd), "export")
    size = os.fstat(fd).st_size
    return os.pread(fd, size, 0)


def main() -> None:
    """Write the program for the capabilities on the command line, atomically."""
    profile_path, output, *caps = sys.argv[2:]
    with open(profile_path, encoding="utf-8") as file:
        profile = json.load(file)
    try:
        program = compile_profile(profile, set(caps), os.uname().machine)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(MISSING_LIBRARY if "libseccomp.so" in str(error) else 1)
    fresh = f"{output}.{os.getpid()}"
    with open(fresh, "wb") as file_out:
        file_out.write(program)
    os.rename(fresh, output)
