"""A real worker that has to fetch what its tasks run from a real registry."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from shoal.model.enums import TaskState as S
from shoal.model.specs import PullOptions
from tests.integration.images.tars import docker_save
from tests.integration.worker.place import Place, a_task, root_tar
from tests.support.registry import MISSING, PASSWORD, REGISTRY, SKOPEO, USER, a_registry, skopeo

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not (REGISTRY and SKOPEO), reason=MISSING),
]
SERVE = "while :; do sleep 0.1; done"
LOGIN = base64.urlsafe_b64encode(
    json.dumps({"username": USER, "password": PASSWORD}).encode()
).decode()


async def test_tasks_pull_what_is_not_here(place: Place, tmp_path: Path) -> None:
    """With the service's login; all tasks share the pull; without it, the reason is told."""
    archive = tmp_path / "box.tar"
    archive.write_bytes(docker_save([root_tar("pulled")], tags=["box:1"]))
    with a_registry(tmp_path / "r", guarded=True) as address:
        skopeo(
            "copy", "--dest-tls-verify=false", "--dest-creds", f"{USER}:{PASSWORD}",
            f"docker-archive:{archive}", f"docker://{address}/box:1",
        )  # fmt: skip
    with a_registry(tmp_path / "r", guarded=True, inside=place.inside()) as address:
        image = f"{address}/box:1"
        place.manager.stream.send(a_task(1, SERVE, image=image))
        error = (await place.reach(1, S.REJECTED)).error
        assert error.startswith(f"No such image: {image}: Get ")
        assert error.endswith("no basic auth credentials")
        login = PullOptions(registry_auth=LOGIN)
        known = [a_task(number, SERVE, image=image, pull_options=login) for number in (2, 3, 4)]
        place.manager.stream.send(*known)
        for number in (2, 3, 4):
            await place.reach(number, S.RUNNING)
        place.manager.stream.send(a_task(5, SERVE, image=image))  # it is here now
        await place.reach(5, S.RUNNING)
        place.manager.stream.send(a_task(6, SERVE, image=f"{address}/box:2", pull_options=login))
        error = (await place.reach(6, S.REJECTED)).error
        assert error.endswith(
            f"manifest for {address}/box:2 not found: manifest unknown: manifest unknown"
        )
    assert place.log.read_text().count('"image.pulled"') == 1
