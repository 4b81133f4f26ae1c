"""The process of an `exec`: the container's own, with what was asked in its place. Pure."""

from __future__ import annotations

from typing import Any

from shoal.errors import InvalidArgument
from worker.runtime.interactive import ExecConfig
from worker.runtime.lean.capabilities import NAMES

EXEC_ID_MAX = 64


def check(exec_id: str, config: ExecConfig) -> None:
    """Refuse what cannot run. Raises: InvalidArgument, naming the field."""
    if not exec_id.isalnum() or not exec_id.isascii() or len(exec_id) > EXEC_ID_MAX:
        raise InvalidArgument(f"exec id {exec_id!r}: 1-{EXEC_ID_MAX} letters and digits")
    if not config.args or not config.args[0]:
        raise InvalidArgument("args: no exec command specified")
    if any("\0" in text for text in (*config.args, *config.env)):
        raise InvalidArgument("args and env must not contain a zero byte")
    if config.cwd and not config.cwd.startswith("/"):
        raise InvalidArgument(f"cwd {config.cwd!r} must be an absolute path")


def process_of(config: ExecConfig, container: dict[str, Any], possible: int) -> dict[str, Any]:
    """An OCI `process`. container: the bundle's; possible: capabilities this node can give."""
    capabilities = container["capabilities"]
    if config.privileged:
        names = [f"CAP_{name}" for bit, name in enumerate(NAMES) if possible >> bit & 1]
        capabilities = dict.fromkeys(("bounding", "effective", "permitted"), names)
    return container | {
        "terminal": config.tty,
        "args": list(config.args),
        "env": environment_of(config, container),
        "cwd": config.cwd or container["cwd"],
        "capabilities": capabilities,
    }


def environment_of(config: ExecConfig, container: dict[str, Any]) -> list[str]:
    """The container's variables, TERM only for a terminal, then what was asked."""
    values = dict(entry.partition("=")[::2] for entry in container["env"])
    if config.tty:
        values.setdefault("TERM", "xterm")
    elif container["terminal"] and values.get("TERM") == "xterm":
        del values["TERM"]  # given for the container's own terminal
    for entry in config.env:
        name, separator, value = entry.partition("=")
        if separator:
            values[name] = value
        else:
            values.pop(name, None)
    return [f"{name}={value}" for name, value in values.items()]


def annotations_of(config: ExecConfig) -> dict[str, str]:
    """User and groups as words; without a user the container's stand."""
    words = {"dev.shoal.user": config.user} if config.user else {}
    return words | ({"dev.shoal.groups": ",".join(config.groups)} if config.groups else {})
