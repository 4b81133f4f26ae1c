"""Short forms of a Compose file written out, so that files can be laid over each other.

Pure but for `read`, which gives the text of an env_file. Everything here has passed the schema.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from shoal.errors import InvalidArgument, NotFound
from swarmctl.compose.tree import Document, Places
from swarmctl.parsing.ports import parse_publish
from swarmctl.parsing.values import parse_environment_file

ReadText = Callable[[str], str]
"""The text of a file by its path. Raises: NotFound, InvalidArgument."""

ENV_FILES_MAX = 64
_FILE_SECTIONS = ("secrets", "configs")
_LISTS = ("dns", "dns_search", "tmpfs")
_MAPS = ("labels", "sysctls")
_PROPAGATIONS = {"private", "rprivate", "shared", "rshared", "slave", "rslave"}
_CONSISTENCIES = {"consistent", "cached", "delegated", "default"}


class Ground:
    """Where a file stands, and what it may look up."""

    def __init__(self, directory: str, environ: Mapping[str, str], read: ReadText) -> None:
        self.directory = directory
        self.environ = environ
        self.read = read

    def path(self, text: str) -> str:
        """A path of the file, as one from the root."""
        if text.startswith("~/") or text == "~":
            text = self.environ.get("HOME", "/") + text[1:]
        return _clean(PurePosixPath(self.directory) / text)


def normalised(document: Document, ground: Ground) -> Document:
    """The document in long forms. Raises: InvalidArgument with the line."""
    value, places = document
    result: dict[str, Any] = {
        key: one for key, one in value.items() if key in {"version", "name"} or key[:2] == "x-"
    }
    services = value.get("services") or {}
    result["services"] = {
        name: _service(name, service, ground, places) for name, service in services.items()
    }
    for section in ("networks", "volumes", "secrets", "configs"):
        result[section] = {
            name: _resource(section, name, one or {}, ground, places)
            for name, one in (value.get(section) or {}).items()
        }
    return Document(result, places)


def _resource(
    section: str, name: str, value: dict[str, Any], ground: Ground, places: Places
) -> dict[str, Any]:
    result = dict(value)
    if "labels" in result:
        result["labels"] = as_map(result["labels"])
    if section in _FILE_SECTIONS and "file" in result:
        result["file"] = ground.path(result["file"])
    if "driver_opts" in result:
        result["driver_opts"] = {key: go_text(one) for key, one in result["driver_opts"].items()}
    external = result.get("external")
    if isinstance(external, dict):  # the older form: external: {name: N}
        if "name" in external and "name" in result:
            said = "external.name and name are both given: use name"
            raise places.fault((section, name, "external"), said)
        result["external"] = True
        result.setdefault("name", external.get("name", name))
    elif external is False:
        del result["external"]
    return result


def _service(name: str, value: dict[str, Any], ground: Ground, places: Places) -> dict[str, Any]:
    result = dict(value)
    for key, read in _READERS.items():
        if key in result:
            with places.at("services", name, key):
                result[key] = read(result[key], ground)
    files = result.pop("env_file", [])
    if files or "environment" in result:
        given = as_map(result.get("environment") or {}, ground.environ)
        with places.at("services", name, "env_file"):
            result["environment"] = _environment(files, ground) | given
    deploy = result.get("deploy")
    if deploy is None:
        result.pop("deploy", None)
    elif "labels" in deploy:
        result["deploy"] = {**deploy, "labels": as_map(deploy["labels"])}
    return result


def _environment(files: list[dict[str, Any]], ground: Ground) -> dict[str, str | None]:
    if len(files) > ENV_FILES_MAX:
        raise InvalidArgument(f"{len(files)} files, at most {ENV_FILES_MAX}")
    result: dict[str, str | None] = {}
    for one in files:
        try:
            text = ground.read(one["path"])
        except NotFound:
            if one.get("required", True):
                raise InvalidArgument(f"{one['path']}: there is no such file") from None
            continue
        for variable in parse_environment_file(text.splitlines(), ground.environ, name=one["path"]):
            key, _, rest = variable.partition("=")
            result[key] = rest
    return result


def as_map(value: Any, environ: Mapping[str, str] | None = None) -> dict[str, str | None]:
    """`KEY=VALUE` lines or a mapping as a mapping of texts.

    environ: where values of keys without one are looked up; None: they are empty.
    """
    if isinstance(value, list):
        pairs = [(key, text if mark else None) for key, mark, text in map(_cut, value)]
    else:
        pairs = [(key, None if one is None else go_text(one)) for key, one in value.items()]
    if environ is None:
        return {key: text or "" for key, text in pairs}
    return {key: environ.get(key) if text is None else text for key, text in pairs}


def go_text(value: object) -> str:
    """A scalar as Docker writes it into text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e21:
        return str(int(value))
    return str(value)


def as_list(value: Any) -> list[Any]:
    """One, or several."""
    return list(value) if isinstance(value, list) else [value]


def _cut(text: str) -> tuple[str, str, str]:
    return text.partition("=")


def _command(value: Any, _: Ground) -> list[str]:
    """As Docker's shell: words are split, but variables are not looked up."""
    if isinstance(value, list):
        return value
    try:
        return shlex.split(value)
    except ValueError as error:
        raise InvalidArgument(f"{value!r}: {error}") from error


def _ports(value: list[Any], _: Ground) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for one in value:
        if isinstance(one, dict):
            if "target" not in one:
                raise InvalidArgument("target is missing, as in target: 80")
            result.append({"mode": "ingress", "protocol": "tcp", **one})
            continue
        for port in parse_publish(str(one)):
            entry: dict[str, Any] = {"mode": "ingress", "target": port.target_port}
            if port.published_port:
                entry["published"] = port.published_port
            entry["protocol"] = port.protocol.name.lower()
            if port.address:
                entry["host_ip"] = port.address
            result.append(entry)
    return result


def _volumes(value: list[Any], ground: Ground) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for one in value:
        volume = dict(one) if isinstance(one, dict) else short_volume(one)
        if volume["type"] == "bind" and "source" in volume:
            volume["source"] = ground.path(volume["source"])
        if "target" in volume:
            volume["target"] = _clean(PurePosixPath(volume["target"]))
        result.append(volume)
    return result


def short_volume(text: str) -> dict[str, Any]:
    """`[SOURCE:]TARGET[:OPTION,...]`; a source that is a path makes it a bind."""
    parts = text.split(":")
    if not 1 <= len(parts) <= 3 or not all(parts):
        raise InvalidArgument(f"{text!r}: write [SOURCE:]TARGET[:OPTIONS]")
    if len(parts) == 1:
        return {"type": "volume", "target": parts[0]}
    source, target = parts[:2]
    is_bind = source.startswith((".", "/", "~"))
    volume: dict[str, Any] = {
        "type": "bind" if is_bind else "volume",
        "source": source,
        "target": target,
    }
    for option in parts[2].split(",") if len(parts) > 2 else ():
        if option in {"ro", "rw"}:
            volume["read_only"] = option == "ro"
        elif option == "nocopy":
            volume["volume"] = {"nocopy": True}
        elif option in _PROPAGATIONS:
            volume["bind"] = {"propagation": option}
        elif option in _CONSISTENCIES:
            volume["consistency"] = option
        else:
            raise InvalidArgument(f"{text!r}: option {option!r} is unknown")
    return volume


def _files(value: list[Any], _: Ground) -> list[dict[str, Any]]:
    return [dict(one) if isinstance(one, dict) else {"source": one} for one in value]


def _networks(value: Any, _: Ground) -> dict[str, dict[str, Any]]:
    if isinstance(value, list):
        return {name: {} for name in value}
    result = {name: dict(one or {}) for name, one in value.items()}
    for one in result.values():
        if "driver_opts" in one:
            one["driver_opts"] = {key: go_text(text) for key, text in one["driver_opts"].items()}
    return result


def _dependencies(value: Any, _: Ground) -> dict[str, dict[str, str]]:
    if isinstance(value, list):
        return {name: {"condition": "service_started"} for name in value}
    return {name: dict(one) for name, one in value.items()}


def _env_files(value: Any, ground: Ground) -> list[dict[str, Any]]:
    files = [one if isinstance(one, dict) else {"path": one} for one in as_list(value)]
    return [{**one, "path": ground.path(one["path"])} for one in files]


def _ulimits(value: dict[str, Any], _: Ground) -> dict[str, dict[str, int]]:
    return {
        name: one if isinstance(one, dict) else {"soft": one, "hard": one}
        for name, one in value.items()
    }


def _hosts(value: Any, _: Ground) -> list[str]:
    if isinstance(value, list):
        return value
    return sorted(f"{name}:{go_text(address)}" for name, address in value.items())


def _health(value: dict[str, Any], _: Ground) -> dict[str, Any]:
    test = value.get("test")
    return {**value, "test": ["CMD-SHELL", test]} if isinstance(test, str) else value


_READERS: dict[str, Callable[[Any, Ground], Any]] = {
    "command": _command,
    "entrypoint": _command,
    "ports": _ports,
    "volumes": _volumes,
    "secrets": _files,
    "configs": _files,
    "networks": _networks,
    "depends_on": _dependencies,
    "env_file": _env_files,
    "ulimits": _ulimits,
    "extra_hosts": _hosts,
    "healthcheck": _health,
    **{key: lambda value, _: as_list(value) for key in _LISTS},
    **{key: lambda value, _: as_map(value) for key in _MAPS},
}


def _clean(path: PurePosixPath) -> str:
    """Without `.` and `..`."""
    parts: list[str] = []
    for part in path.parts:
        if part == ".." and parts and parts[-1] != "/":
            parts.pop()
        elif part not in {"..", "."}:
            parts.append(part)
    return str(PurePosixPath(*parts)) if parts else "/"
