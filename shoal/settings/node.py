"""How a node is part of its cluster: written by swarmd at init and join, read by its processes."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from shoal.errors import FailedPrecondition

FORMAT_VERSION = 2
"""1: without `store`. Written as 1 where there is none, so that older versions read it."""


class NodeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses are HOST:PORT unless they say otherwise.

    managers: those the node knew when it joined; the agent keeps a newer list of its own.
    data_path_address: underlay address of the VXLAN, without a port.
    store: URL of the etcd that keeps the managers' state; empty: they keep it themselves.
    """

    advertise_address: str
    listen_address: str
    data_path_address: str
    managers: tuple[str, ...]
    availability: str = "active"
    store: str = ""
    version: int = 1


class _Head(msgspec.Struct):
    version: int = 1


def read_node_config(path: Path) -> NodeConfig | None:
    """The configuration, or None when the node is in no cluster.

    Raises: FailedPrecondition when the file is damaged or of a newer version.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        version = msgspec.json.decode(data, type=_Head).version  # first: fields may differ later
        if version > FORMAT_VERSION:
            raise FailedPrecondition(
                f"{path}: format version {version} is newer than {FORMAT_VERSION}: "
                "run the version of Shoal that wrote it"
            )
        return msgspec.json.decode(data, type=NodeConfig)
    except msgspec.MsgspecError as error:
        raise FailedPrecondition(f"{path}: damaged ({error}): leave and join again") from error


def write_node_config(path: Path, config: NodeConfig) -> None:
    """Write durably: a crash leaves the old file or the new one."""
    fields = msgspec.to_builtins(config)
    if config.store:
        fields["version"] = FORMAT_VERSION
    else:
        del fields["store"]
    write_durably(path, msgspec.json.encode(fields))


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a small file so that a crash at any moment leaves the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(path.name + ".tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    except OSError:  # a full disk: leave no half of it behind
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
