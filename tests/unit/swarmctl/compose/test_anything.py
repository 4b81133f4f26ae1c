"""Files made up from the schema, right and wrong: each is read, or refused in words."""

from __future__ import annotations

import json
import random
from importlib import resources
from typing import Any

import pytest
import yaml

from shoal.api.v1 import specs_pb2
from shoal.errors import SwarmError
from shoal.wire.objects import to_pb
from swarmctl.compose.project import Project, project_spec, project_text
from tests.unit.swarmctl.compose.site import Site, load

SCHEMA = json.loads(
    resources.files("swarmctl.compose").joinpath("config_schema_v3.13.json").read_text()
)
DEFINITIONS = SCHEMA["definitions"]
JUNK = (
    None, True, 0, -1, 1.5, 10**30, "", "x", "a=b", ":", "~", "../..", "$$", "\0", "é" * 50, [], {},
    ["a"], {"a": "b"}, [None], [{}], {"": 1}, ["a=b", "a"],
)  # fmt: skip
WORDS = (
    "a", "b", "a:b", "/x:/y", "c=d", "80:80", "1.2.3.4", "h:1.2.3.4", "replicated", "global", "any",
    "pause", "overlay", "64M", "0.5", "x:/y:ro", "tcp", "bind", "volume", "/abs", "./rel", "no",
    "golang", "always",
)  # fmt: skip
FILES = 400


class Full(Site):
    """Every file is there."""

    def read_bytes(self, path: str) -> bytes:
        return b"A=1"


class Maker:
    """Makes values of a schema up."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, schema: dict[str, Any], depth: int = 0) -> Any:
        choose = self.random.choice
        if "$ref" in schema:
            return self.value(DEFINITIONS[schema["$ref"].rsplit("/", 1)[-1]], depth)
        if self.random.random() < 0.002 or depth > 6:
            return choose(JUNK)
        if "oneOf" in schema:
            return self.value(choose(schema["oneOf"]), depth)
        kind = schema.get("type")
        match choose(kind) if isinstance(kind, list) else kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                count = self.random.randint(0, 2)
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "string":
                is_duration = schema.get("format") == "duration"
                return choose(("5s", "1m30s", "0")) if is_duration else choose(WORDS)
            case "number" | "integer":
                return choose((0, 1, 2, 80, 8080))
            case "boolean":
                return choose((True, False))
            case _:
                return None

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        made = {
            key: self.value(one, depth + 1)
            for key, one in schema.get("properties", {}).items()
            if key in schema.get("required", ()) or self.random.random() < 0.15
        }
        for pattern, one in schema.get("patternProperties", {}).items():
            if pattern != "^x-":
                made[self.random.choice(("a", "b", "nofile"))] = self.value(one, depth + 1)
        return made

    def file(self) -> str:
        service = self.value(DEFINITIONS["service"])
        if isinstance(service, dict):
            service = {**service, "image": "nginx", "depends_on": []}
            service.pop("build", None)
        return yaml.dump(
            {
                "services": {"web": service},
                "networks": {"a": self.value(DEFINITIONS["network"]), "b": {}},
                "volumes": {"a": self.value(DEFINITIONS["volume"]), "x": {}},
                "secrets": {"a": {"file": "a"}, "b": {"external": True}},
                "configs": {"a": {"content": "a"}, "b": {"file": "b"}},
            }
        )


def spec_of(project: Project) -> Any:
    return project_spec(project, "st", Full()).replaced(source="")


def test_any_file_is_read_or_refused_and_reads_back_the_same() -> None:
    read = 0
    for seed in range(FILES):
        text = Maker(seed).file()
        try:
            project = load(text, site=Full())
            spec = spec_of(project)
            to_pb(spec, specs_pb2.StackSpec)
        except SwarmError:
            continue
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}\n{text}")
        read += 1
        assert spec_of(load(project_text(project), site=Full())) == spec, text
    assert read > FILES // 10
