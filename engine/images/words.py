"""What the API says of images. Pure.

Fields that later versions of the API dropped are still told to those who ask for an earlier one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from engine.http.versions import ApiVersion
from shoal.clock import NS_PER_S
from worker.images.history import Configuration, Step
from worker.images.model import Image, Removal
from worker.images.registry.api import Descriptor

_UNNAMED_SINCE = ApiVersion(1, 43)
_ONE_SIZE_SINCE = ApiVersion(1, 44)
_NO_CONTAINER_SINCE = ApiVersion(1, 45)
_NO_TIME = "0001-01-01T00:00:00Z"
_EMPTY_CONFIG: dict[str, Any] = {
    "Hostname": "", "Domainname": "", "User": "", "AttachStdin": False, "AttachStdout": False,
    "AttachStderr": False, "Tty": False, "OpenStdin": False, "StdinOnce": False, "Env": None,
    "Cmd": None, "Image": "", "Volumes": None, "WorkingDir": "", "Entrypoint": None,
    "OnBuild": None, "Labels": None,
}  # fmt: skip


def summary(
    image: Image,
    version: ApiVersion,
    *,
    tags: Sequence[str],
    digests: Sequence[str],
    shared_bytes: int = -1,
    containers: int = -1,
) -> dict[str, Any]:
    """One image of a list. tags, digests: those that were asked for; -1: not counted."""
    named = bool(tags or digests) or version >= _UNNAMED_SINCE
    words: dict[str, Any] = {
        "Containers": containers,
        "Created": unix_time(image.created),
        "Id": image.id,
        "Labels": dict(image.config.labels) or None,
        "ParentId": image.parent,
        "RepoDigests": list(digests) if named else ["<none>@<none>"],
        "RepoTags": list(tags) if named else ["<none>:<none>"],
        "SharedSize": shared_bytes,
        "Size": image.size_bytes,
    }
    if version < _ONE_SIZE_SINCE:
        words["VirtualSize"] = image.size_bytes
    return words


def inspected(
    image: Image, found: Configuration, layers: Sequence[str], version: ApiVersion
) -> dict[str, Any]:
    """Everything about one image. layers: directories, topmost first."""
    made_from = {"Container": "", "ContainerConfig": _EMPTY_CONFIG}
    return {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Parent": image.parent,
        "Comment": _comment(found),
        "Created": found.created or _NO_TIME,
        **(made_from if version < _NO_CONTAINER_SINCE else {}),
        "DockerVersion": found.docker_version,
        "Author": found.author,
        "Config": {**_EMPTY_CONFIG, **(found.config or {})},
        "Architecture": image.architecture,
        **({"Variant": image.variant} if image.variant else {}),
        "Os": image.os,
        "Size": image.size_bytes,
        **({"VirtualSize": image.size_bytes} if version < _ONE_SIZE_SINCE else {}),
        "GraphDriver": {"Data": _directories(layers), "Name": "overlay2"},
        "RootFS": {"Type": "layers", "Layers": [layer.diff_id for layer in image.layers]},
        "Metadata": {"LastTagTime": _time(image.tagged_at_ns)},
    }


def _comment(found: Configuration) -> str:
    """The comment, or that of the newest step, where OCI keeps it."""
    if found.comment or not found.history:
        return found.comment
    return found.history[-1].comment


def _directories(layers: Sequence[str]) -> dict[str, str]:
    """An image is not mounted: there is no merged or work directory."""
    found = {"UpperDir": layers[0]}
    if len(layers) > 1:
        found["LowerDir"] = ":".join(layers[1:])
    return found


def history(step: Step) -> dict[str, Any]:
    """One line of `docker history`."""
    return {
        "Comment": step.comment,
        "Created": unix_time(step.created),
        "CreatedBy": step.created_by,
        "Id": step.id or "<missing>",
        "Size": step.size_bytes,
        "Tags": list(step.names) or None,
    }


def removal(done: Removal) -> list[dict[str, str]]:
    """What a removal took away, in order."""
    return [
        {"Untagged": line.untagged} if line.untagged else {"Deleted": line.deleted}
        for line in done.lines
    ]


def distribution(found: Descriptor) -> dict[str, Any]:
    """What a registry says of an image."""
    return {
        "Descriptor": {
            "mediaType": found.media_type,
            "digest": found.digest,
            "size": found.size_bytes,
        },
        "Platforms": [
            {"architecture": architecture, "os": os, **({"variant": variant} if variant else {})}
            for os, architecture, variant in found.platforms
        ],
    }


def unix_time(text: str) -> int:
    """Seconds since 1970 of an RFC 3339 text; Go's zero time when there is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return -62135596800
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() // 1)


def _time(now_ns: int) -> str:
    if not now_ns:
        return _NO_TIME
    seconds, rest_ns = divmod(now_ns, NS_PER_S)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest_ns:09d}Z"


def shared_bytes(image: Image, counts: Mapping[str, int]) -> int:
    """Bytes of its layers that other images have, too. counts: images by chain id."""
    return sum(layer.unpacked_bytes for layer in image.layers if counts[layer.chain_id] > 1)
