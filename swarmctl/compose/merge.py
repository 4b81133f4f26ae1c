"""Several Compose files laid over each other, in their long forms. Pure.

Of each service mappings are merged key by key; lists that name things (ports, mounts, secrets) by
what they name; commands are replaced; other lists grow. Networks, volumes, secrets and configs of
the later file replace those of the same name, as Docker does it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarmctl.compose.tree import Document

_REPLACED = frozenset({"command", "entrypoint", "test"})
_KEYS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ports": lambda port: (
        port.get("published") or ("", port["target"]), port["protocol"], port.get("host_ip"),
    ),
    "volumes": lambda volume: volume.get("target"),
    "secrets": lambda one: one.get("source"),
    "configs": lambda one: one.get("source"),
}  # fmt: skip


def merged(base: Document, over: Document) -> Document:
    """Both files as one, the second on top."""
    result = {**base.value, **over.value}
    services = dict(base.value["services"])
    for name, service in over.value["services"].items():
        services[name] = _merged(services[name], service) if name in services else service
    result["services"] = services
    for section in ("networks", "volumes", "secrets", "configs"):
        result[section] = {**base.value[section], **over.value[section]}
    return Document(result, over.places.over(base.places))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        result[key] = _value(key, base[key], value) if key in base else value
    return result


def _value(key: str, base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        if key == "logging" and base.get("driver") != over.get("driver", base.get("driver")):
            return over
        return _merged(base, over)
    if isinstance(base, list) and isinstance(over, list) and key not in _REPLACED:
        name_of = _KEYS.get(key)
        if name_of is None:
            return [*base, *(one for one in over if one not in base)]
        return list({name_of(one): one for one in [*base, *over]}.values())
    return over
