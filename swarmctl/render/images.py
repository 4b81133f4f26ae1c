"""An image in the shape of `docker image inspect`."""

from __future__ import annotations

from shoal.docker.values import OpenMap, Record, record
from shoal.docker.words import timestamp
from swarmctl.types import Image


def image_json(image: Image) -> Record:
    """The image and what it says of its containers."""
    config = image.config
    return record(
        {
            "Id": image.id,
            "RepoTags": list(image.names),
            "Created": timestamp(image.created_at_ns),
            "Architecture": image.architecture,
            "Os": image.os,
            "Size": image.size_bytes,
            "Config": record(
                {
                    "Env": list(config.env),
                    "Cmd": list(config.command),
                    "Entrypoint": list(config.entrypoint),
                },
                User=config.user,
                WorkingDir=config.working_dir,
                StopSignal=config.stop_signal,
                ExposedPorts=OpenMap({port: {} for port in config.exposed_ports}),
                Labels=OpenMap(config.labels),
            ),
        },
        Digest=image.digest,
    )
