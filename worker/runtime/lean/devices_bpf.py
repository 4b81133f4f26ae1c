"""The device filter of cgroup v2: an eBPF program assembled from OCI device rules.

As in OCI and cgroup v1 the last matching rule wins, so the program tests the rules from last to
first and the first match decides; with no match access is denied. `assemble` is pure.
"""

from __future__ import annotations

import ctypes
import os
import struct

from worker.runtime.lean import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PROG_LOAD, _PROG_ATTACH = 5, 8
_PROG_TYPE_CGROUP_DEVICE, _ATTACH_CGROUP_DEVICE = 15, 6
_ALLOW_MULTI = 2
_ACCESS_BITS = {"m": 1, "r": 2, "w": 4}
_KIND_NUMBER = {"b": 1, "c": 2}
_R0, _R1, _R2, _R3, _R4, _R5, _R6 = range(7)


def _instruction(code: int, dst: int, src: int, offset: int, value: int) -> bytes:
    return struct.pack("<BBhi", code, src << 4 | dst, offset, value)


def assemble(rules: list[dict[str, Any]]) -> bytes:
    """Instructions deciding on (access type, major, minor) in the kernel's bpf_cgroup_dev_ctx."""
    program = [
        _instruction(0x61, _R2, _R1, 0, 0),  # r2 = access << 16 | type
        _instruction(0xBC, _R3, _R2, 0, 0),  # r3 = r2 (32 bit)
        _instruction(0x54, _R2, 0, 0, 0xFFFF),  # r2 = type
        _instruction(0x74, _R3, 0, 0, 16),  # r3 = access
        _instruction(0x61, _R4, _R1, 4, 0),  # r4 = major
        _instruction(0x61, _R5, _R1, 8, 0),  # r5 = minor
    ]
    for rule in reversed(rules):
        if rule.get("type", "a") == "a" and len(rule.get("access") or "rwm") == 3:
            # Decides everything; the kernel refuses a program with code nobody can reach.
            program += _verdict(allow=rule["allow"])
            break
        program += _rule(rule)
    else:
        program += _verdict(allow=False)
    return b"".join(program)


def _rule(rule: dict[str, Any]) -> list[bytes]:
    tests: list[tuple[int, int, int]] = []  # (opcode, register, immediate): jump away on true
    kind = rule.get("type", "a")
    if kind != "a":
        tests.append((0x55, _R2, _KIND_NUMBER[kind]))
        if rule.get("major") is not None:
            tests.append((0x55, _R4, rule["major"]))
        if rule.get("minor") is not None:
            tests.append((0x55, _R5, rule["minor"]))
    wanted = sum(_ACCESS_BITS[letter] for letter in rule.get("access") or "rwm")
    body: list[bytes] = []
    if wanted != 7:
        body += [
            _instruction(0xBC, _R6, _R3, 0, 0),
            _instruction(0x54, _R6, 0, 0, ~wanted & 7),
        ]
        tests.append((0x55, _R6, 0))
    verdict = _verdict(allow=rule["allow"])
    prologue, jumps = body, []
    for index, (code, register, value) in enumerate(tests):
        distance = len(tests) - index - 1 + len(verdict)
        jumps.append(_instruction(code, register, 0, distance, value))
    return [*prologue, *jumps, *verdict]


def _verdict(*, allow: bool) -> list[bytes]:
    return [_instruction(0xB7, _R0, 0, 0, int(allow)), _instruction(0x95, 0, 0, 0, 0)]


def load(program: bytes) -> int:
    """Load the program; returns its descriptor. Raises: OSError."""
    code = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Apache-2.0")
    block = struct.pack(
        "<IIQQIIQII16sII",
        _PROG_TYPE_CGROUP_DEVICE, len(program) // 8, ctypes.addressof(code),
        ctypes.addressof(license_text), 0, 0, 0, 0, 0, b"shoal_devices", 0, 0,
    )  # fmt: skip
    return linux.bpf(_PROG_LOAD, ctypes.create_string_buffer(block, len(block)), "device program")


def attach(program_fd: int, cgroup: str) -> None:
    """Attach the program to a cgroup v2 directory; removed with the directory."""
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        block = struct.pack("<IIII", directory, program_fd, _ATTACH_CGROUP_DEVICE, _ALLOW_MULTI)
        linux.bpf(_PROG_ATTACH, ctypes.create_string_buffer(block, len(block)), cgroup)
    finally:
        os.close(directory)
