"""Two tiny interpreters, so that programs are judged by what they decide."""

from __future__ import annotations

import struct


def run_classic(  # noqa: C901 - one branch per instruction
    program: bytes, *, arch: int, number: int, args: tuple[int, ...] = ()
) -> int:
    """Run a seccomp filter (classic BPF) on one system call; returns its verdict."""
    values = [*args, *[0] * (6 - len(args))]
    frame = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, arch, 0, *values)
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    accumulator = index = 0
    memory = [0] * 16
    x = 0
    while True:
        operation, yes, no, k = code[index]
        index += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("<I", frame, k)
        elif operation == 0x06:
            return k
        elif operation == 0x05:
            index += k
        elif operation == 0x15:
            index += yes if accumulator == k else no
        elif operation == 0x25:
            index += yes if accumulator > k else no
        elif operation == 0x35:
            index += yes if accumulator >= k else no
        elif operation == 0x45:
            index += yes if accumulator & k else no
        elif operation == 0x54:
            accumulator &= k
        elif operation == 0x02:
            memory[k] = accumulator
        elif operation == 0x60:
            accumulator = memory[k]
        elif operation == 0x00:
            accumulator = k
        elif operation == 0x07:
            x = accumulator
        elif operation == 0x87:
            accumulator = x
        else:
            raise AssertionError(f"instruction {operation:#x} not known to the interpreter")


def run_device_program(program: bytes, *, access: int, kind: int, major: int, minor: int) -> int:
    """Run a cgroup device program (eBPF subset) on one access; returns r0."""
    context = struct.pack("<III", access << 16 | kind, major, minor)
    code = [struct.unpack_from("<BBhi", program, at) for at in range(0, len(program), 8)]
    registers = [0] * 11
    index = 0
    while True:
        operation, pair, offset, value = code[index]
        destination, source = pair & 15, pair >> 4
        index += 1
        if operation == 0x61:
            (registers[destination],) = struct.unpack_from("<I", context, offset)
        elif operation == 0xBC:
            registers[destination] = registers[source] & 0xFFFFFFFF
        elif operation == 0x54:
            registers[destination] &= value & 0xFFFFFFFF
        elif operation == 0x74:
            registers[destination] >>= value
        elif operation == 0x55:
            index += offset if registers[destination] != value else 0
        elif operation == 0xB7:
            registers[destination] = value
        elif operation == 0x95:
            return registers[0]
        else:
            raise AssertionError(f"instruction {operation:#x} not known to the interpreter")
