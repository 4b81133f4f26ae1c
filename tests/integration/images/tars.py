"""Tars and image archives made in memory, well-formed or hostile."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from typing import Any


def member(name, content=None, **fields):
    """One entry; `type` etc. through fields, extended attributes as `xattrs`."""
    info = tarfile.TarInfo(name)
    info.mode = 0o644
    info.mtime = 1_600_000_000
    xattrs = fields.pop("xattrs", {})
    for key, value in fields.items():
        setattr(info, key, value)
    if info.type == tarfile.DIRTYPE and "mode" not in fields:
        info.mode = 0o755
    if xattrs:
        info.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in xattrs.items()}
    if content is not None:
        info.size = len(content)
    return info, content


def directory(name, **fields):
    return member(name, type=tarfile.DIRTYPE, **fields)


def symlink(name, target, **fields):
    return member(name, type=tarfile.SYMTYPE, linkname=target, **fields)


def hardlink(name, target, **fields):
    return member(name, type=tarfile.LNKTYPE, linkname=target, **fields)


def device(name, kind=tarfile.CHRTYPE, major=1, minor=3, **fields):
    return member(name, type=kind, devmajor=major, devminor=minor, **fields)


def tar(*members):
    """The bytes of a tar with those members."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if content is not None else None)
    return out.getvalue()


def digest(content):
    return "sha256:" + hashlib.sha256(content).hexdigest()


def config(layers, architecture="amd64", **runtime):
    return json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "created": "2026-01-02T03:04:05Z",
            "config": runtime,
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
    ).encode()


def docker_save(
    layers: Sequence[bytes],
    tags: Sequence[str] = ("web:1",),
    *,
    settings: bytes | None = None,
    **runtime: Any,
) -> bytes:
    """What docker 20.10's save writes."""
    document = settings or config(layers, **runtime)
    name = digest(document)[7:]
    members = [member(f"{name}.json", document)]
    paths = []
    for layer in layers:
        path = f"{digest(layer)[7:]}/layer.tar"
        if path not in paths:
            members += [directory(f"{digest(layer)[7:]}/"), member(path, layer)]
        paths.append(path)
    manifest = [{"Config": f"{name}.json", "RepoTags": list(tags), "Layers": paths}]
    members.append(member("manifest.json", json.dumps(manifest).encode()))
    return tar(*members)


def hybrid_archive(layers, tags):
    """What docker 25 and later save: an OCI layout with docker's manifest.json beside it."""
    document = config(layers)
    manifest = {
        "schemaVersion": 2,
        "config": {"digest": digest(document), "size": len(document)},
        "layers": [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest(layer)}
            for layer in layers
        ],
    }
    content = json.dumps(manifest).encode()
    descriptor = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": digest(content),
        "annotations": {
            "io.containerd.image.name": f"docker.io/library/{tags[0]}",
            "org.opencontainers.image.ref.name": tags[0].rpartition(":")[2],
        },
    }

    def path(blob):
        return f"blobs/sha256/{digest(blob)[7:]}"

    saved = [
        {
            "Config": path(document),
            "RepoTags": list(tags),
            "Layers": [path(layer) for layer in layers],
        }
    ]
    return tar(
        directory("blobs/"),
        directory("blobs/sha256/"),
        *(member(path(blob), blob) for blob in {document, content, *layers}),
        member("index.json", json.dumps({"manifests": [descriptor]}).encode()),
        member("manifest.json", json.dumps(saved).encode()),
        member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
    )


def oci_archive(images, *, damage=None):
    """images: (layers, platform, annotations) each; layers are stored as gzip."""
    blobs = {}

    def add(content, media_type, **more):
        blobs[digest(content)] = content
        return {
            "mediaType": media_type,
            "digest": digest(content),
            "size": len(content),
            **more,
        }

    manifests = []
    for layers, platform, notes in images:
        document = config(layers, architecture=platform["architecture"], Cmd=["/run"])
        manifest = {
            "schemaVersion": 2,
            "config": add(document, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                add(gzip.compress(layer, mtime=0), "application/vnd.oci.image.layer.v1.tar+gzip")
                for layer in layers
            ],
        }
        manifests.append(
            add(
                json.dumps(manifest).encode(),
                "application/vnd.oci.image.manifest.v1+json",
                platform=platform,
                annotations=notes,
            )
        )
    index = json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()
    nested = add(
        index,
        "application/vnd.oci.image.index.v1+json",
        annotations={"io.containerd.image.name": "docker.io/library/multi:2"},
    )
    top = json.dumps({"schemaVersion": 2, "manifests": [nested]}).encode()
    if damage is not None:
        damage(blobs)
    return tar(
        member("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
        member("index.json", top),
        *(member(f"blobs/sha256/{key[7:]}", content) for key, content in blobs.items()),
    )
