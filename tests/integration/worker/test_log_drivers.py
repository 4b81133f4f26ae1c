"""Log drivers of tasks on a real worker: syslog to a server, and none at all."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from shoal.errors import Unimplemented
from shoal.model.enums import TaskState as S
from shoal.model.specs import TaskSpec
from shoal.model.types import Driver
from tests.integration.worker.place import Place, a_task, task_id
from worker.logs.service import check_kept

pytestmark = pytest.mark.root


def logging_to(number: int, driver: Driver):
    task = a_task(number, "echo said; exit 0")
    spec: TaskSpec = task.spec.replaced(log_driver=driver)
    return task.replaced(spec=spec)


async def test_lines_go_to_a_syslog_server_under_the_task_s_name(place: Place) -> None:
    path = place.directory / "syslog"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.settimeout(60)
        options = {"syslog-address": f"unixgram://{path}", "tag": "{{.Name}}"}
        place.manager.stream.send(logging_to(1, Driver(name="syslog", options=options)))
        await place.reach(1, S.COMPLETE)
        line = server.recv(4096).decode()
    assert f"front.1.{task_id(1)}" in line
    assert line.endswith(": said\n")


async def test_drivers_that_keep_something_or_nothing_here(place: Place) -> None:
    place.manager.stream.send(
        logging_to(1, Driver(name="none")),
        logging_to(2, Driver(name="local", options={"max-size": "1m"})),
        logging_to(3, Driver(name="journald", options={"tag": "x"})),
    )
    for number in (1, 2):
        await place.reach(number, S.COMPLETE)
    directories = [place.paths.worker / "containers" / task_id(number) for number in (1, 2)]
    with pytest.raises(Unimplemented, match="does not support reading"):
        check_kept(str(directories[0]))
    check_kept(str(directories[1]))
    await place.until(lambda: _lines(directories[1]) == ["said\n"])
    assert _lines(directories[0]) == []
    if not os.path.exists("/run/systemd/journal/socket"):
        assert "journald" in (await place.reach(3, S.REJECTED)).error


def _lines(directory: Path) -> list[str]:
    found = sorted((directory / "logs").glob("*.json"))
    return [json.loads(line)["log"] for path in found for line in path.read_text().splitlines()]
