"""Containers of the agent's tasks, in the engine's words: shown, but never changed, by it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from engine.containers.records import Record
from engine.containers.requests import Config, HealthConfig, HostConfig, LogConfig
from worker.agent.container import IMAGE_ID_LABEL, TASK_ID_LABEL
from worker.agent.health import check_in
from worker.health import files
from worker.health.core import Health
from worker.runtime.api import ContainerStatus
from worker.runtime.lean.files import BUNDLE_FILE

_IMAGE_LABEL = "dev.shoal.image"
_NAME_LABEL = "com.docker.swarm.task.name"
_OURS = "dev.shoal."


def is_task(status: ContainerStatus) -> bool:
    """Whether the agent has made it."""
    return TASK_ID_LABEL in status.labels


async def record_of(status: ContainerStatus, directory: str) -> Record:
    """What is known of a task's container. directory: where the runtime keeps it."""
    process = await asyncio.to_thread(_read_process, directory)
    labels = {key: text for key, text in status.labels.items() if not key.startswith(_OURS)}
    image = status.labels.get(_IMAGE_LABEL, "")
    return Record(
        id=status.id,
        name=status.labels.get(_NAME_LABEL, status.id),
        created_at_ns=status.created_at_ns,
        image_id=status.labels.get(IMAGE_ID_LABEL, ""),
        image=image,
        path=process.args[0],
        args=process.args[1:],
        config=Config(
            image=image,
            labels=labels,
            hostname=status.id[:12],
            env=list(process.env),
            cmd=list(process.args),
            working_dir=process.cwd,
            tty=process.terminal,
            healthcheck=_check_of(status.labels),
        ),
        host=HostConfig(log_config=LogConfig(type="json-file")),
        started=status.started_at_ns > 0,
    )


def health_of(status: ContainerStatus, directory: str) -> Health | None:
    """What the agent's checks have said of a task's container; None: it has none. Reads a file."""
    if check_in(status.labels) is None:
        return None
    kept = files.load(directory)
    return Health() if kept is None else kept.health


def _check_of(labels: Mapping[str, str]) -> HealthConfig | None:
    check = check_in(labels)
    if check is None:
        return None
    return HealthConfig(
        test=["CMD", *check.args],
        interval=check.interval_ns,
        timeout=check.timeout_ns,
        start_period=check.start_period_ns,
        start_interval=check.start_interval_ns,
        retries=check.retries,
    )


class _Process(msgspec.Struct, frozen=True):
    args: tuple[str, ...] = ("",)
    env: tuple[str, ...] = ()
    cwd: str = ""
    terminal: bool = False


class _Bundle(msgspec.Struct, frozen=True):
    process: _Process = _Process()


def _read_process(directory: str) -> _Process:
    """What the bundle says; nothing when the container is gone already."""
    try:
        content = Path(directory, BUNDLE_FILE).read_bytes()
        process = msgspec.json.decode(content, type=_Bundle).process
    except (OSError, msgspec.MsgspecError):
        return _Process()
    return process if process.args else _Process()
