"""Which keys a Compose file may have, and what they hold: the official schema, and what is ours.

`config_schema_v3.13.json` is the schema that `docker stack deploy` judges by, unchanged. On top are
the keys of the Compose specification that stacks here honour as well; everything else is refused
with its line, also what other tools would pass over.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable
from importlib import resources
from typing import Any

from jsonschema import Draft4Validator, FormatChecker, ValidationError

from shoal.errors import InvalidArgument
from swarmctl.compose.tree import Document, LocatedError
from swarmctl.parsing.ports import parse_publish
from swarmctl.parsing.units import parse_duration

VERSIONS = frozenset({"", "3", *(f"3.{minor}" for minor in range(14))})
FORBIDDEN = {
    "extends": "Support for `extends` is not implemented yet. Use `docker-compose config` to"
    " generate a configuration with all `extends` options resolved, and deploy from that.",
    "volume_driver": "Instead of setting the volume driver on the service, define a volume using"
    " the top-level `volumes` option and specify the driver there.",
    "volumes_from": "To share a volume between services, define it using the top-level `volumes`"
    " option and reference it from each service that shares it using the service-level `volumes`"
    " option.",
    "cpu_quota": "Set resource limits using deploy.resources",
    "cpu_shares": "Set resource limits using deploy.resources",
    "cpuset": "Set resource limits using deploy.resources",
    "mem_limit": "Set resource limits using deploy.resources",
    "memswap_limit": "Set resource limits using deploy.resources",
}
UNSUPPORTED = (
    "build", "cgroupns_mode", "cgroup_parent", "domainname", "external_links", "ipc",
    "links", "mac_address", "network_mode", "pid", "privileged", "security_opt",
    "shm_size", "userns_mode",
)  # fmt: skip
"""Ignored with a warning, as Docker does. `restart` is in its list too, but it honours it; so is
`devices`, which is honoured here."""
DEPRECATED = {
    "container_name": "Setting the container name is not supported.",
    "expose": "Exposing ports is unnecessary - services on the same network can access each"
    " other's containers on any port.",
}
ERRORS_SHOWN = 10

_TEXT = {"type": "string"}
_NUMBER_OR_TEXT = {"type": ["string", "number"]}
_CONDITIONS = ["service_started", "service_healthy", "service_completed_successfully"]
_DEPENDS_ON = {
    "oneOf": [
        {"$ref": "#/definitions/list_of_strings"},
        {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "properties": {"condition": {"enum": _CONDITIONS}},
                "required": ["condition"],
                "additionalProperties": False,
            },
        },
    ]
}
_ENV_FILE = {
    "oneOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "oneOf": [
                    {"type": "string"},
                    {
                        "type": "object",
                        "properties": {"path": _TEXT, "required": {"type": "boolean"}},
                        "required": ["path"],
                        "additionalProperties": False,
                    },
                ]
            },
        },
    ]
}


def check_keys(document: Document) -> None:
    """Refuse what is not in the schema. Raises: InvalidArgument with a line for each fault."""
    value, places = document
    version = value.get("version")
    if version is not None and not isinstance(version, str):
        raise LocatedError(places.fault(("version",), "must be text: write it in quotes").message)
    if (version or "") not in VERSIONS:
        said = f"{version!r} is not supported: stacks take files of version 3, or of none"
        raise LocatedError(places.fault(("version",), said).message)
    services = value.get("services")
    for name, service in services.items() if isinstance(services, dict) else ():
        for key in FORBIDDEN if isinstance(service, dict) else ():
            if key in service:
                raise LocatedError(places.fault(("services", name, key), FORBIDDEN[key]).message)
    faults = [
        places.fault(tuple(error.absolute_path) + _extra(error), _words(error)).message
        for error in map(_best, _validator().iter_errors(value))
    ]
    if faults:
        more = len(faults) - ERRORS_SHOWN
        shown = sorted(faults)[:ERRORS_SHOWN] + ([f"and {more} more"] if more > 0 else [])
        raise LocatedError("\n".join(shown))


def ignored(services: Iterable[dict[str, Any]]) -> list[str]:
    """Docker's warnings about keys that have no effect in stacks."""
    keys = {key for service in services for key in service}
    warnings = []
    unsupported = sorted(keys & set(UNSUPPORTED))
    if unsupported:
        warnings.append(f"Ignoring unsupported options: {', '.join(unsupported)}")
    deprecated = [f"{key}: {DEPRECATED[key]}" for key in sorted(keys & DEPRECATED.keys())]
    if deprecated:
        warnings.append("Ignoring deprecated options:\n\n" + "\n\n".join(deprecated))
    return warnings


def _extra(error: ValidationError) -> tuple[str, ...]:
    """The key that is too much, for its line."""
    if error.validator != "additionalProperties" or not isinstance(error.instance, dict):
        return ()
    extra = _unknown(error)
    return (extra[0],) if extra else ()


def _unknown(error: ValidationError) -> list[str]:
    schema: Any = error.schema
    instance: Any = error.instance
    known, patterns = schema.get("properties", {}), schema.get("patternProperties", {})
    return [
        key
        for key in instance
        if key not in known and not any(re.search(pattern, key) for pattern in patterns)
    ]


def _words(error: ValidationError) -> str:
    if error.validator == "additionalProperties":
        return f"Additional property {', '.join(_unknown(error)[:5])} is not allowed"
    if error.validator == "type":
        kinds: Any = error.validator_value
        wanted = kinds if isinstance(kinds, str) else " or ".join(kinds)
        return f"must be of type {wanted}, not {_shortened(error.instance)}"
    if error.validator == "format":
        return f"Does not match format '{error.validator_value}': {_shortened(error.instance)}"
    return error.message if len(error.message) < 200 else f"{error.message[:200]}..."


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _best(error: ValidationError) -> ValidationError:
    """Of the forms that a value might have, the one that it comes closest to."""
    while error.context:
        error = max(
            error.context, key=lambda one: (len(one.absolute_path), one.validator != "type")
        )
    return error


@functools.cache
def _validator() -> Draft4Validator:
    text = resources.files("swarmctl.compose").joinpath("config_schema_v3.13.json").read_text()
    schema = json.loads(text)
    _extend(schema)
    return Draft4Validator(schema, format_checker=_formats())


def _extend(schema: dict[str, Any]) -> None:
    """The keys of the Compose specification that are honoured besides."""
    schema["properties"]["name"] = _TEXT
    definitions = schema["definitions"]
    service = definitions["service"]["properties"]
    service["depends_on"] = _DEPENDS_ON
    service["env_file"] = _ENV_FILE
    service["hostname"] = _TEXT
    port = service["ports"]["items"]["oneOf"][2]["properties"]
    port.update(published={"type": ["integer", "string"]}, host_ip=_TEXT)
    limits = definitions["deployment"]["properties"]["resources"]["properties"]
    for name in ("limits", "reservations"):
        limits[name]["properties"].update(cpus=_NUMBER_OR_TEXT, memory=_NUMBER_OR_TEXT)
    network = definitions["network"]["properties"]
    network["enable_ipv6"] = {"type": "boolean"}
    network["ipam"]["properties"]["config"]["items"]["properties"].update(
        gateway=_TEXT, ip_range=_TEXT,
        aux_addresses={"type": "object", "additionalProperties": _TEXT},
    )  # fmt: skip
    definitions["secret"]["properties"]["environment"] = _TEXT
    definitions["config"]["properties"].update(environment=_TEXT, content=_TEXT)


def _formats() -> FormatChecker:
    checker = FormatChecker(formats=())
    checker.checks("duration", raises=InvalidArgument)(_is_duration)
    checker.checks("ports", raises=InvalidArgument)(_is_port)
    checker.checks("expose")(_is_exposed)
    return checker


def _is_duration(value: object) -> bool:
    return not isinstance(value, str) or parse_duration(value) is not None


def _is_port(value: object) -> bool:
    return "=" not in str(value) and bool(parse_publish(str(value)))


def _is_exposed(value: object) -> bool:
    return re.fullmatch(r"\d+(-\d+)?(/[a-zA-Z]+)?", str(value)) is not None
