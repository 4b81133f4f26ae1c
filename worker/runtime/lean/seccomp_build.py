"""Compiles a seccomp profile, as Docker writes them, into a BPF program: once per capability set.

Runs as a process of its own (`python -I -S -c BOOT root output caps…`, the profile on its standard
input) because libseccomp must not live in the supervisor. Before the filter of a profile that
refuses what it does not name stands a stub that answers ENOSYS to calls newer than the profile, so
that C libraries fall back as they do under runc. Refuses flags, listeners and unknown actions.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import sys

_ERRNO = 0x00050000
_ACTIONS = {
    "SCMP_ACT_KILL": 0, "SCMP_ACT_KILL_THREAD": 0, "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000, "SCMP_ACT_ERRNO": _ERRNO, "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000, "SCMP_ACT_ALLOW": 0x7FFF0000,
}  # fmt: skip
_WITH_VALUE = frozenset(("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"))
_PERMISSIVE = frozenset(("SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"))
_EPERM = 1
_OPTIMIZE, _OPTIMIZE_TREE = 8, 2
_ARCHES = {
    "x86_64": (0xC000003E, {"x86": 0x40000003, "x32": 0x4000003E}),
    "aarch64": (0xC00000B7, {"arm": 0x40000028}),
}
_ARCH_NAMES = {
    "SCMP_ARCH_X86_64": "x86_64", "SCMP_ARCH_X86": "x86", "SCMP_ARCH_X32": "x32",
    "SCMP_ARCH_AARCH64": "aarch64", "SCMP_ARCH_ARM": "arm",
}  # fmt: skip
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


def other_arches(profile: dict[str, Any], machine: str) -> dict[str, int]:
    """Names and tokens of the architectures the profile covers besides the machine's own."""
    names = profile.get("architectures") or ()
    for entry in profile.get("archMap") or ():
        if _ARCH_NAMES.get(entry["architecture"]) == machine:
            names = entry["subArchitectures"]
    wanted = {_ARCH_NAMES.get(name) for name in names}
    return {name: token for name, token in _ARCHES[machine][1].items() if name in wanted}


def compile_profile(profile: dict[str, Any], caps: set[str], machine: str) -> bytes:
    """The whole program.

    Raises: OSError when libseccomp is missing or refuses a rule; ValueError, KeyError, TypeError
    for what is no profile.
    """
    for key in ("flags", "listenerPath"):
        if profile.get(key):
            raise ValueError(f"{key}: not possible with this runtime")
    library = _load()
    native, others = _ARCHES[machine][0], other_arches(profile, machine)
    default = _action(profile["defaultAction"], profile.get("defaultErrnoRet"))
    context = library.seccomp_init(default)
    _check(library.seccomp_attr_set(context, _OPTIMIZE, _OPTIMIZE_TREE), "optimize")
    for name, token in others.items():
        _check(library.seccomp_arch_add(context, token), f"architecture {name}")
    kernel_words = os.uname().release.split(".")
    kernel = (int(kernel_words[0]), int(kernel_words[1]))
    highest = dict.fromkeys(("native", *_ARCHES[machine][1]), 0)
    for rule in profile.get("syscalls") or ():
        for name in rule.get("names") or [rule["name"]]:
            for arch, token in (("native", native), *others.items()):
                number = library.seccomp_syscall_resolve_name_arch(token, name.encode())
                highest[arch] = max(highest[arch], number)
            if applies(rule, caps, machine, kernel):
                _add_rule(library, context, rule, name, default)
    program = _export(library, context)
    if profile["defaultAction"] in _PERMISSIVE:
        return program
    return stub(machine, highest) + program


def _load() -> ctypes.CDLL:
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
    return library


def _add_rule(
    library: ctypes.CDLL, context: int, rule: dict[str, Any], name: str, default: int
) -> None:
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number == -1:
        return  # newer than this libseccomp: the stub answers
    action = _action(rule["action"], rule.get("errnoRet"))
    if action == default:
        return
    comparisons = [
        _ArgCmp(a["index"], _OPERATORS[a["op"]], a["value"], a.get("valueTwo", 0))
        for a in rule.get("args") or ()
    ]
    indices = [comparison.arg for comparison in comparisons]
    # libseccomp joins by "and" and takes an argument once: twice means "or", as in runc.
    together = len(set(indices)) == len(indices)
    for group in [comparisons] if together else [[one] for one in comparisons]:
        array = (_ArgCmp * len(group))(*group)
        place = ctypes.addressof(array) if group else None
        result = library.seccomp_rule_add_array(context, action, number, len(group), place)
        _check(result, f"rule for {name}")


def _action(name: str, value: int | None) -> int:
    if name not in _ACTIONS:
        raise ValueError(f"unknown action {name!r}")
    return _ACTIONS[name] | ((_EPERM if value is None else value) if name in _WITH_VALUE else 0)


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
    output, *caps = sys.argv[2:]
    try:
        profile = json.loads(sys.stdin.buffer.read())
        program = compile_profile(profile, set(caps), os.uname().machine)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        sys.exit(MISSING_LIBRARY if "libseccomp.so" in str(error) else 1)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        os.write(2, f"Decoding seccomp profile failed: {error}\n".encode())
        sys.exit(1)
    fresh = f"{output}.{os.getpid()}"
    with open(fresh, "wb") as file_out:
        file_out.write(program)
    os.rename(fresh, output)
