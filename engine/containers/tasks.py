"""Containers of the agent's tasks, in the engine's words: shown, but never changed, by it."""

from __future__ import annotations

from engine.containers.records import Record
from engine.containers.requests import Config, HostConfig, LogConfig
from worker.agent.container import IMAGE_ID_LABEL, TASK_ID_LABEL
from worker.runtime.api import ContainerStatus

_IMAGE_LABEL = "dev.shoal.image"
_NAME_LABEL = "com.docker.swarm.task.name"
_OURS = "dev.shoal."


def is_task(status: ContainerStatus) -> bool:
    """Whether the agent has made it."""
    return TASK_ID_LABEL in status.labels


async def record_of(status: ContainerStatus) -> Record:
    """What is known of a task's container."""
    labels = {key: text for key, text in status.labels.items() if not key.startswith(_OURS)}
    image = status.labels.get(_IMAGE_LABEL, "")
    return Record(
        id=status.id,
        name=status.labels.get(_NAME_LABEL, status.id),
        created_at_ns=status.created_at_ns,
        image_id=status.labels.get(IMAGE_ID_LABEL, ""),
        image=image,
        path="",
        args=(),
        config=Config(image=image, labels=labels, hostname=status.id[:12]),
        host=HostConfig(log_config=LogConfig(type="json-file")),
        started=status.started_at_ns > 0,
    )
