"""Field and enum numbers on the wire never change and are never used again.

`tests/golden/wire/<file>.txt` holds every number that was ever given: `Message.field = number`.
After adding fields, write them down with

    python -m tests.unit.shoal.wire.test_numbers --update

which only ever adds lines. A field that goes away must become `reserved`; its line stays.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from shoal.api.v1 import (
    ca_pb2,
    control_pb2,
    dispatcher_pb2,
    logs_pb2,
    node_pb2,
    objects_pb2,
    specs_pb2,
    stacks_pb2,
    types_pb2,
    watch_pb2,
)

GOLDEN = Path(__file__).parents[3] / "golden" / "wire"
MODULES = [
    ca_pb2, control_pb2, dispatcher_pb2, logs_pb2, node_pb2, objects_pb2, specs_pb2, stacks_pb2,
    types_pb2, watch_pb2,
]  # fmt: skip


def numbers(module: ModuleType) -> dict[str, int]:
    """Number by dotted name, of every field and enum value of a file."""
    found: dict[str, int] = {}
    for enum in module.DESCRIPTOR.enum_types_by_name.values():
        found |= {f"{enum.name}.{value.name}": value.number for value in enum.values}
    for message in module.DESCRIPTOR.message_types_by_name.values():
        found |= dict(_fields(message, message.name))
    return found


def _fields(message: Any, name: str) -> Iterator[tuple[str, int]]:
    for field in message.fields:
        yield f"{name}.{field.name}", field.number
    for nested in message.nested_types:
        if not nested.GetOptions().map_entry:
            yield from _fields(nested, f"{name}.{nested.name}")


def reserved(module: ModuleType) -> set[tuple[str, int]]:
    """(message or enum, number) of every number that is reserved."""
    file = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(file)
    messages = {
        (message.name, number)
        for message in file.message_type
        for span in message.reserved_range
        for number in range(span.start, min(span.end, 100_000))
    }
    return messages | {
        (enum.name, number)
        for enum in file.enum_type
        for span in enum.reserved_range
        for number in range(span.start, min(span.end, 100_000) + 1)
    }


def path_of(module: ModuleType) -> Path:
    return GOLDEN / f"{module.__name__.rpartition('.')[2].removesuffix('_pb2')}.txt"


def read_golden(path: Path) -> dict[str, int]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: int(number) for name, _, number in (line.partition(" = ") for line in lines)}


def write_golden(module: ModuleType) -> None:
    known = numbers(module) | read_golden(path_of(module))  # what was given once stays
    text = "".join(f"{name} = {number}\n" for name, number in sorted(known.items()))
    path_of(module).write_text(text)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: path_of(module).stem)
def test_numbers_are_never_changed_or_used_again(module):
    golden, current = read_golden(path_of(module)), numbers(module)
    unlisted = sorted(current.keys() - golden.keys())
    assert not unlisted, f"run this file with --update to write down {unlisted}"
    changed = {name: (golden[name], number) for name, number in current.items()
               if golden[name] != number}  # fmt: skip
    assert not changed, f"numbers (was, is) must not change: {changed}"
    owners: dict[tuple[str, int], str] = {}
    for name, number in golden.items():
        key = (name.rpartition(".")[0], number)
        assert key not in owners, f"{name} uses the number of {owners[key]} again"
        owners[key] = name
    held_back = reserved(module)
    for name in sorted(golden.keys() - current.keys()):
        key = (name.rpartition(".")[0], golden[name])
        assert key in held_back, f"{name} is gone: reserve its number {golden[name]}"


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for each in MODULES:
        write_golden(each)
