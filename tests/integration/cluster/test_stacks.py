"""A stack of five services on a real cluster: up in order, deployed twice, changed, back, gone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

FIRST, SECOND = "first-zyxwv", "second-zyxwv"
FILE = """\
version: "3.8"
x-quick: &quick
  image: web:1
  stop_grace_period: 0s
  networks: [back]
x-deploy: &deploy {update_config: {monitor: 0s}}
services:
  web:
    <<: *quick
    command: ${WEB_COMMAND:-httpd -f -p 80 -h /www}
    depends_on: [api]
    networks: [front, back]
    deploy: {<<: *deploy, replicas: 2}
  api:
    <<: *quick
    command: [sh, -c, "wget -qO- http://db/cgi-bin/who && cat /etc/site.conf && sleep 1000"]
    depends_on:
      migrate: {condition: service_completed_successfully}
    configs: [{source: site, target: /etc/site.conf}]
    deploy: *deploy
  migrate:
    <<: *quick
    command: [sh, -c, "wget -qO- http://db/cgi-bin/who"]
    depends_on:
      db: {condition: service_healthy}
    deploy: {mode: replicated-job, replicas: 1}
  db:
    <<: *quick
    command: [sh, -c, "sleep 1; exec httpd -f -p 80 -h /www"]
    healthcheck: {test: wget -qO- http://127.0.0.1/cgi-bin/who, interval: 1s, retries: 30}
    secrets: [key]
    volumes: ["data:/data"]
    deploy: *deploy
  each:
    <<: *quick
    command: sleep 1000
    deploy: {<<: *deploy, mode: global}
networks: {front: , back: {attachable: true}}
volumes: {data: }
secrets: {key: {file: ./key}}
configs: {site: {content: "for ${SITE}\\n"}}
"""


def tasks_of(lab: Lab, stack: str) -> dict[str, list[dict[str, Any]]]:
    """The tasks of a stack by service."""
    ids = lab.swarmctl("stack", "ps", stack, "-q", "--no-trunc").split()
    found: dict[str, list[dict[str, Any]]] = {}
    for task in json.loads(lab.swarmctl("task", "inspect", *ids)):
        found.setdefault(task["Name"].split(".")[0].removeprefix(f"{stack}_"), []).append(task)
    return found


def made_at(tasks: list[dict[str, Any]]) -> str:
    """When the first of them was made."""
    return min(task["CreatedAt"] for task in tasks)


def ready_at(tasks: list[dict[str, Any]]) -> str:
    """When the first of them ran, and was healthy, or was done."""
    reached = {"running", "complete"}
    return min(task["Status"]["Timestamp"] for task in tasks if task["Status"]["State"] in reached)


def versions(lab: Lab, stack: str) -> dict[str, Any]:
    ids = lab.swarmctl("stack", "services", stack, "-q").split()
    found = json.loads(lab.swarmctl("service", "inspect", *ids))
    return {one["Spec"]["Name"]: one["Version"]["Index"] for one in found}


def test_a_stack_of_five_services(lab: Lab, service: str, tmp_path: Path) -> None:
    name = service
    lab.environment["SITE"] = "all"
    (tmp_path / "key").write_text(FIRST)
    file = tmp_path / "stack.yml"
    file.write_text(FILE)
    deploy = ("stack", "deploy", "-q", "--resolve-image", "never", "-c", str(file), name)
    try:
        made = lab.swarmctl(*deploy)
        assert f"Creating secret {name}_key" in made
        assert made.splitlines()[-2:] == [
            f"Creating service {name}_api",
            f"Creating service {name}_web",
        ]
        tasks = tasks_of(lab, name)
        assert {key: len(found) for key, found in tasks.items()} == {
            "web": 2, "api": 1, "migrate": 1, "db": 1, "each": len(lab.addresses),
        }  # fmt: skip
        assert ready_at(tasks["db"]) <= made_at(tasks["migrate"])
        assert ready_at(tasks["migrate"]) <= made_at(tasks["api"])
        assert ready_at(tasks["api"]) <= made_at(tasks["web"])
        logs = lab.run("service", "logs", "--raw", f"{name}_api").stdout
        assert "for all" in logs

        before = versions(lab, name)
        again = lab.swarmctl(*deploy, "-d")
        assert again == f"Stack {name} is as it is wished: nothing was changed\n"
        assert versions(lab, name) == before
        listed = lab.swarmctl("stack", "ls", "--format", "{{.Name}} {{.Services}} {{.Revision}}")
        assert f"{name} 5 1" in listed.splitlines()

        (tmp_path / "key").write_text(SECOND)
        changed = lab.swarmctl(*deploy)
        assert changed.splitlines()[0] == f"Rotating secret {name}_key"
        assert [line.split()[:3] for line in changed.splitlines()[1:]] == [
            ["Updating", "service", f"{name}_db"]
        ]
        back = lab.swarmctl("stack", "rollback", "-q", name)
        assert f"Rotating secret {name}_key" in back
        history = lab.swarmctl("stack", "history", name, "--format", "{{.Revision}} {{.Note}}")
        assert history.splitlines() == ["3 current, rolled back to 1", "2 ", "1 "]
        shown = lab.swarmctl("stack", "config", name)
        assert "for all" in shown
        assert FIRST not in shown

        bad = FILE.replace("  each:\n    <<", "  each:\n    bogus: 1\n    <<")
        file.write_text(bad)
        line = bad.splitlines().index("    bogus: 1") + 1
        refused = lab.run(*deploy, check=False)
        assert refused.returncode == 2
        assert f"{file}:{line}: services.each.bogus: Additional property" in refused.stderr
    finally:
        lab.swarmctl("stack", "rm", name, check=False)
        del lab.environment["SITE"]
    eventually(
        "networks of the stack are gone",
        lambda: name not in lab.swarmctl("network", "ls", "--format", "{{.Name}}"),
    )
    missing = lab.run("stack", "ps", name, check=False)
    assert f"nothing found in stack: {name}" in missing.stderr
