"""What instructions make of an image's configuration. Pure.

A configuration is the `config` object of an image in Docker's spelling, as it stands in the image:
fields this version knows nothing of are passed on. Instructions come with their variables replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine.build.language import Instruction, absolute
from shoal.errors import InvalidArgument
from worker.images.changes import checked_signal, health_check, ports
from worker.images.oci import health_document

Config = Mapping[str, Any]
Change = Callable[[Config, Instruction], dict[str, Any]]

DEFAULT_SHELL = ("/bin/sh", "-c")
DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def from_base(config: Config) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Where a stage begins: the base's configuration, and the triggers it had.

    As in Docker, whoever has no PATH gets one.
    """
    begun = {name: value for name, value in config.items() if name != "OnBuild"}
    if "PATH" not in environment(config):
        begun["Env"] = [*(config.get("Env") or ()), DEFAULT_PATH]
    return begun, tuple(config.get("OnBuild") or ())


def environment(config: Config) -> dict[str, str]:
    """The variables of a configuration."""
    return dict(item.partition("=")[::2] for item in config.get("Env") or ())


def shell(config: Config) -> tuple[str, ...]:
    """What the shell form of a command is given to."""
    return tuple(config.get("Shell") or DEFAULT_SHELL)


def changed(config: Config, instruction: Instruction, *, cmd_is_set: bool) -> dict[str, Any]:
    """The configuration after an instruction that changes nothing else. Raises: InvalidArgument.

    cmd_is_set: whether this stage has had a `CMD`, which `ENTRYPOINT` then leaves alone.
    """
    try:
        result = CHANGES[instruction.name](config, instruction)
    except InvalidArgument as error:
        raise InvalidArgument(f"{instruction.name} failed: {error.message}") from None
    if instruction.name == "ENTRYPOINT" and not cmd_is_set:
        result["Cmd"] = None
    return result


def summary(instruction: Instruction, config: Config) -> str:
    """The instruction as an image's history shows it. config: after it."""
    name, args = instruction.name, instruction.args
    match name:
        case "ENV" | "LABEL":
            words = " ".join(f"{key}={value}" for key, value in _pairs(args))
        case "CMD" | "ENTRYPOINT":
            words = _quoted(config["Cmd" if name == "CMD" else "Entrypoint"] or ())
        case "SHELL" | "VOLUME":
            words = f"[{' '.join(args)}]"
        case "HEALTHCHECK" | "ONBUILD":
            words = instruction.rest
        case "WORKDIR":
            return f"WORKDIR {config['WorkingDir']}"
        case _:
            words = " ".join(args)
    return f" {name} {words}"


def _quoted(words: Iterable[str]) -> str:
    inside = " ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in words)
    return f"[{inside}]"


def _pairs(args: Sequence[str]) -> list[tuple[str, str]]:
    return list(zip(args[::2], args[1::2], strict=True))


def _env(config: Config, one: Instruction) -> dict[str, Any]:
    variables = environment(config)
    for name, value in _pairs(one.args):
        if not name:
            raise InvalidArgument("ENV names can not be blank")
        variables[name] = value
    return {**config, "Env": [f"{name}={value}" for name, value in variables.items()]}


def _label(config: Config, one: Instruction) -> dict[str, Any]:
    return {**config, "Labels": {**(config.get("Labels") or {}), **dict(_pairs(one.args))}}


def _expose(config: Config, one: Instruction) -> dict[str, Any]:
    known = config.get("ExposedPorts") or {}
    return {**config, "ExposedPorts": {port: {} for port in sorted(ports(one.args, known))}}


def _volume(config: Config, one: Instruction) -> dict[str, Any]:
    paths = [path.strip() for path in one.args]
    if not all(paths):
        raise InvalidArgument("VOLUME specified can not be an empty string")
    return {**config, "Volumes": {**(config.get("Volumes") or {}), **{path: {} for path in paths}}}


def _command(config: Config, one: Instruction) -> list[str]:
    if one.json:
        return list(one.args)
    return [*shell(config), *one.args] if one.args and one.args[0] else []


def _cmd(config: Config, one: Instruction) -> dict[str, Any]:
    return {**config, "Cmd": _command(config, one)}


def _entrypoint(config: Config, one: Instruction) -> dict[str, Any]:
    words = _command(config, one)
    return {**config, "Entrypoint": words or None}


def _user(config: Config, one: Instruction) -> dict[str, Any]:
    return {**config, "User": one.args[0]}


def _workdir(config: Config, one: Instruction) -> dict[str, Any]:
    path = absolute(one.args[0], str(config.get("WorkingDir") or ""))
    return {**config, "WorkingDir": path.rstrip("/") or "/"}


def _stop_signal(config: Config, one: Instruction) -> dict[str, Any]:
    return {**config, "StopSignal": checked_signal(one.args[0])}


def _shell(config: Config, one: Instruction) -> dict[str, Any]:
    return {**config, "Shell": list(one.args)}


def _health_check(config: Config, one: Instruction) -> dict[str, Any]:
    return {**config, "Healthcheck": health_document(health_check(one.rest))}


def _on_build(config: Config, one: Instruction) -> dict[str, Any]:
    return {**config, "OnBuild": [*(config.get("OnBuild") or ()), one.rest]}


def _unchanged(config: Config, one: Instruction) -> dict[str, Any]:
    del one
    return dict(config)


CHANGES: Mapping[str, Change] = {
    "ARG": _unchanged, "CMD": _cmd, "ENTRYPOINT": _entrypoint, "ENV": _env, "EXPOSE": _expose,
    "HEALTHCHECK": _health_check, "LABEL": _label, "MAINTAINER": _unchanged, "ONBUILD": _on_build,
    "SHELL": _shell, "STOPSIGNAL": _stop_signal, "USER": _user, "VOLUME": _volume,
    "WORKDIR": _workdir,
}  # fmt: skip
"""What changes the configuration; of these only `WORKDIR` may touch files as well."""
