"""What differs between two specs, field by field, under the names that `service inspect` shows.

A list is compared as what was taken out and what was put in, since its items have no names; where
only their order differs, the whole lists are told. What is not to be shown (credentials for a
registry) is named without its value.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from shoal.docker.specs import service_spec_json
from shoal.model.row import Row
from shoal.model.specs import ContainerSpec, PullOptions, ServiceSpec

TEXT_MAX = 500
"""Characters of a value."""
CREDENTIALS = "TaskTemplate.ContainerSpec.PullOptions.RegistryAuth"
UNNAMED = "(a field that Docker's API has no name for)"
HIDDEN = "(not shown)"


class FieldChange(Row, frozen=True):
    """One field, or one item of a list. old: "" where it was not there; new: where it will not."""

    path: str
    old: str = ""
    new: str = ""


def field_changes(old: ServiceSpec | None, new: ServiceSpec | None) -> tuple[FieldChange, ...]:
    """Every difference; None for a service that is not there yet, or any more."""
    before = {} if old is None else service_spec_json(old)
    after = {} if new is None else service_spec_json(new)
    found = list(_differences("", before, after))
    if _credentials(old) != _credentials(new):
        found.append(
            FieldChange(CREDENTIALS, _hidden(_credentials(old)), _hidden(_credentials(new)))
        )
    if old != new and not found:
        found.append(FieldChange(UNNAMED, new=HIDDEN))
    return tuple(found)


def _differences(path: str, old: Any, new: Any) -> Iterator[FieldChange]:
    if old == new:
        return
    if _is_map(old) and _is_map(new) and (old or new):  # an empty map is no absent one
        for key in dict.fromkeys((*(old or {}), *(new or {}))):
            yield from _differences(_joined(path, key), (old or {}).get(key), (new or {}).get(key))
    elif _is_list(old) and _is_list(new) and (old or new):
        yield from _items(path, old or [], new or [])
    else:
        yield FieldChange(path, _text(old), _text(new))


def _items(path: str, old: list[Any], new: list[Any]) -> Iterator[FieldChange]:
    left, kept = list(new), []
    for item in old:
        if item in left:
            left.remove(item)
            kept.append(item)
        else:
            yield FieldChange(path, old=_text(item))
    for item in left:
        yield FieldChange(path, new=_text(item))
    if len(kept) == len(old) == len(new):
        yield FieldChange(path, _text(old), _text(new))


def _is_map(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


def _is_list(value: Any) -> bool:
    return value is None or isinstance(value, list | tuple)


def _joined(path: str, key: str) -> str:
    plain = key.replace("-", "").replace("_", "").isalnum()
    shown = key if plain else json.dumps(key, ensure_ascii=False)
    return f"{path}.{shown}" if path else shown


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str) and value:
        text = value
    else:
        text = json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    return text if len(text) <= TEXT_MAX else f"{text[: TEXT_MAX - 1]}…"


def _credentials(spec: ServiceSpec | None) -> PullOptions | None:
    runtime = None if spec is None else spec.task.runtime
    return runtime.pull_options if isinstance(runtime, ContainerSpec) else None


def _hidden(credentials: PullOptions | None) -> str:
    return "" if credentials is None else HIDDEN
