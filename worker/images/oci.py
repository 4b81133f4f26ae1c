"""The documents of an image: configuration, manifest, index. Pure; reads docker's and OCI's forms.

Unknown fields are ignored, as the specifications ask; fields we use must have the right type, or
the document is refused by name. What is stored is always the original bytes: a digest is over
bytes, never over what we understood of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from shoal.errors import InvalidArgument
from shoal.model.types import HealthCheck
from worker.images.model import ImageConfig, Layer, digest_hex

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPES = (MANIFEST_TYPE, "application/vnd.docker.distribution.manifest.v2+json")
INDEX_TYPES = (INDEX_TYPE, "application/vnd.docker.distribution.manifest.list.v2+json")
_LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
)
_ARCHITECTURES = {
    "x86_64": ("amd64", ""), "aarch64": ("arm64", "v8"), "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"), "i686": ("386", ""), "i386": ("386", ""), "ppc64le": ("ppc64le", ""),
    "s390x": ("s390x", ""), "riscv64": ("riscv64", ""),
}  # fmt: skip
KNOWN_ARCHITECTURES = frozenset(
    (*(name for name, _ in _ARCHITECTURES.values()), "loong64", "mips64le", "ppc64")
)

T = TypeVar("T")


class Platform(msgspec.Struct, frozen=True):
    """What a machine runs, in Go's words."""

    architecture: str = ""
    os: str = ""
    variant: str = ""


class Descriptor(msgspec.Struct, frozen=True):
    """A pointer to a blob."""

    media_type: str = msgspec.field(name="mediaType", default="")
    digest: str = ""
    size: int = 0
    annotations: dict[str, str] | None = None
    platform: Platform | None = None
    urls: list[str] | None = None


class Manifest(msgspec.Struct, frozen=True):
    """One image: a configuration and its layers, lowest first."""

    config: Descriptor
    layers: list[Descriptor]
    media_type: str = msgspec.field(name="mediaType", default="")


class ImageIndex(msgspec.Struct, frozen=True):
    """Several images, mostly one per platform."""

    manifests: list[Descriptor]


class ParsedConfig(msgspec.Struct, frozen=True):
    """What the store keeps of an image configuration."""

    platform: Platform
    created: str
    diff_ids: tuple[str, ...]
    config: ImageConfig


class _Health(msgspec.Struct):
    Test: list[str] | None = None
    Interval: int = 0
    Timeout: int = 0
    StartPeriod: int = 0
    StartInterval: int = 0
    Retries: int = 0


class _RuntimeConfig(msgspec.Struct):
    Env: list[str] | None = None
    Cmd: list[str] | None = None
    Entrypoint: list[str] | None = None
    User: str | None = None
    WorkingDir: str | None = None
    StopSignal: str | None = None
    ExposedPorts: dict[str, object] | None = None
    Volumes: dict[str, object] | None = None
    Labels: dict[str, str] | None = None
    Healthcheck: _Health | None = None
    Shell: list[str] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str]
    type: str = "layers"


class _ConfigFile(msgspec.Struct):
    rootfs: _RootFs
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str | None = None
    config: _RuntimeConfig | None = None


def sha256(content: bytes) -> str:
    """`sha256:<hex>` of `content`."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def read_document(content: bytes, kind: type[T], what: str) -> T:
    """Decode a JSON document. Raises InvalidArgument naming `what` and the wrong field."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"{what} is malformed: {error}") from error


def manifest_type(content: bytes) -> str:
    """The media type of a manifest the store keeps; OCI's lets it go unsaid."""
    return read_document(content, Manifest, "manifest").media_type or MANIFEST_TYPE


def chain_ids(diff_ids: Sequence[str]) -> tuple[str, ...]:
    """Chain id of each layer: the diffID first, then sha256("<chain below> <diffID>") upwards."""
    chains: list[str] = []
    for diff_id in diff_ids:
        chains.append(sha256(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return tuple(chains)


def is_layer_type(media_type: str) -> bool:
    """Whether a layer's media type is one that unpacks here. Foreign and encrypted ones do not."""
    base = media_type.removesuffix("+gzip").removesuffix("+zstd").removesuffix(".gzip")
    return base.removesuffix(".zstd") in _LAYER_TYPES


def host_platform(machine: str) -> Platform:
    """The platform of a machine by what `uname -m` says."""
    architecture, variant = _ARCHITECTURES.get(machine, (machine, ""))
    return Platform(architecture=architecture, os="linux", variant=variant)


def normal_architecture(text: str) -> tuple[str, str]:
    """Architecture and variant of what people write, like `x86_64` or `aarch64`."""
    return _ARCHITECTURES.get(text, (text, "v8" if text == "arm64" else ""))


def runs_on(found: Platform, host: Platform) -> bool:
    """Whether an image of platform `found` runs on `host`; an unset variant fits any."""
    return (
        found.os == host.os
        and found.architecture == host.architecture
        and (not found.variant or not host.variant or found.variant <= host.variant)
    )


def parse_config(
    content: bytes, *, what: str, layers_max: int, layers_min: int = 1
) -> ParsedConfig:
    """Read an image configuration. Raises InvalidArgument naming the field and the rule."""
    parsed = read_document(content, _ConfigFile, what)
    if len(parsed.rootfs.diff_ids) < layers_min:
        raise InvalidArgument(f"{what}: rootfs.diff_ids is empty: an image has at least one layer")
    if len(parsed.rootfs.diff_ids) > layers_max:
        raise InvalidArgument(
            f"{what}: {len(parsed.rootfs.diff_ids)} layers, the limit is {layers_max}"
        )
    for diff_id in parsed.rootfs.diff_ids:
        digest_hex(diff_id, f"{what}: rootfs.diff_ids")
    return ParsedConfig(
        platform=Platform(
            architecture=parsed.architecture, os=parsed.os or "linux", variant=parsed.variant
        ),
        created=parsed.created or "",
        diff_ids=tuple(parsed.rootfs.diff_ids),
        config=_runtime(parsed.config or _RuntimeConfig()),
    )


def _runtime(config: _RuntimeConfig) -> ImageConfig:
    return ImageConfig(
        env=tuple(config.Env or ()),
        cmd=_optional(config.Cmd),
        entrypoint=_optional(config.Entrypoint),
        user=config.User or "",
        working_dir=config.WorkingDir or "",
        stop_signal=config.StopSignal or "",
        exposed_ports=tuple(sorted(config.ExposedPorts or ())),
        volumes=tuple(sorted(config.Volumes or ())),
        labels=dict(config.Labels or {}),
        healthcheck=None if config.Healthcheck is None else _health(config.Healthcheck),
        shell=_optional(config.Shell),
    )


def _optional(words: list[str] | None) -> tuple[str, ...] | None:
    return None if words is None else tuple(words)


def _health(check: _Health) -> HealthCheck:
    return HealthCheck(
        test=tuple(check.Test or ()),
        interval_ns=check.Interval,
        timeout_ns=check.Timeout,
        start_period_ns=check.StartPeriod,
        start_interval_ns=check.StartInterval,
        retries=check.Retries,
    )


def build_config(
    config: ImageConfig, *, platform: Platform, created: str, diff_ids: Sequence[str], comment: str
) -> bytes:
    """The configuration document of an image made here."""
    check = config.healthcheck
    document = {
        "architecture": platform.architecture,
        "config": {
            "Env": list(config.env),
            "Cmd": None if config.cmd is None else list(config.cmd),
            "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
            "User": config.user,
            "WorkingDir": config.working_dir,
            "StopSignal": config.stop_signal,
            "ExposedPorts": {port: {} for port in config.exposed_ports},
            "Volumes": {path: {} for path in config.volumes},
            "Labels": config.labels,
            "Healthcheck": None if check is None else health_document(check),
        },
        "created": created,
        "history": [{"created": created, "comment": comment}],
        "os": platform.os,
        "rootfs": {"type": "layers", "diff_ids": list(diff_ids)},
        "variant": platform.variant,
    }
    return msgspec.json.encode({key: value for key, value in document.items() if value})


def health_document(check: HealthCheck) -> dict[str, object]:
    """In Docker's spelling."""
    return {
        "Test": list(check.test),
        "Interval": check.interval_ns,
        "Timeout": check.timeout_ns,
        "StartPeriod": check.start_period_ns,
        "StartInterval": check.start_interval_ns,
        "Retries": check.retries,
    }


def build_manifest(*, config_digest: str, config_bytes: int, layers: Sequence[Layer]) -> bytes:
    """The manifest of an image that came without one."""
    return msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": config_digest, "size": config_bytes},
            "layers": [
                {
                    "mediaType": layer.media_type,
                    "digest": layer.blob_digest,
                    "size": layer.blob_bytes,
                }
                for layer in layers
            ],
        }
    )
