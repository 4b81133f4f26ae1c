"""Secrets and configs on a real cluster: seen by the tasks that need them, found on no disk."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.integration.cluster.lab import Lab, eventually

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

FIRST, SECOND = "first-content-zyxwv", "second-content-zyxwv"
SCRIPT = "cat /run/secrets/key /etc/site.conf; echo; exec httpd -f -p 80 -h /www"


def say(lab: Lab, service: str, *texts: str) -> None:
    """Wait until the logs of the service hold all of these."""
    eventually(
        f"{service} logs {texts}",
        lambda: all(text in lab.run("service", "logs", "--raw", service).stdout for text in texts),
    )


def holders(lab: Lab, *contents: str) -> list[str]:
    """Files of the nodes, but for the logs of containers, in which a content stands."""
    patterns = [part for content in contents for part in ("-e", content)]
    places = [str(lab.base / "lab" / lab.name / node) for node in lab.addresses]
    command = ["grep", "-rlaF", "--devices=skip", "--exclude-dir=logs", *patterns, *places]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return [line for line in lines.splitlines() if "/run/files/" not in line]


def test_tasks_see_their_files_which_rotate_and_lie_on_no_disk(
    lab: Lab, service: str, tmp_path: Path
) -> None:
    names = {"key": f"{service}-key", "site": f"{service}.conf"}
    for name, content in (("one", FIRST), ("two", SECOND)):
        (tmp_path / name).write_text(content)
    lab.swarmctl("secret", "create", names["key"], str(tmp_path / "one"))
    (tmp_path / "site").write_text(
        'for {{.Service.Name}} at {{.Node.Hostname}} with {{secret "key"}} and {{env "A"}}'
    )
    site = ("config", "create", "--template-driver", "golang", names["site"])
    lab.swarmctl(*site, str(tmp_path / "site"))
    try:
        lab.swarmctl(
            "service", "create", "--name", service, "--replicas", "2",
            "--update-monitor", "0s", "--stop-grace-period", "0s", "--env", "A=b{{.Task.Slot}}",
            "--secret", f"source={names['key']},target=key,mode=0400",
            "--config", f"source={names['site']},target=/etc/site.conf",
            "web:1", "sh", "-c", SCRIPT,
        )  # fmt: skip
        say(lab, service, f"for {service} at ", f"with {FIRST} and b1", f"with {FIRST} and b2")
        refused = lab.run("secret", "rm", names["key"], check=False)
        assert refused.returncode != 0
        users = f"is in use by the following service: {service}"
        assert f"secret '{names['key']}' {users}" in refused.stderr
        updated = lab.run("secret", "update", names["key"], str(tmp_path / "two"))
        assert f"{service} updated" in updated.stderr
        say(lab, service, f"with {SECOND} and b1", f"with {SECOND} and b2")
        kept = lab.swarmctl("secret", "ls", "--all", "--format", "{{.Name}}").split()
        assert {names["key"], f"{names['key']}@1"} <= set(kept)
        assert holders(lab, FIRST, SECOND) == []
    finally:
        lab.swarmctl("service", "rm", service, check=False)
        lab.run("secret", "rm", "--force", names["key"], check=False)
        lab.run("config", "rm", "--force", names["site"], check=False)


def test_contents_change_below_running_tasks(lab: Lab, service: str, tmp_path: Path) -> None:
    name = f"{service}-key"[-60:]
    for number, content in (("one", FIRST), ("two", SECOND)):
        (tmp_path / number).write_text(content)
    lab.swarmctl("secret", "create", name, str(tmp_path / "one"))
    script = "trap 'cat /run/secrets/key; echo' HUP; while :; do sleep 0.1; done"
    try:
        lab.swarmctl(
            "service", "create", "--name", service, "--replicas", "2", "--stop-grace-period", "0s",
            "--secret-rotation", "signal=HUP", "--secret", f"source={name},target=key",
            "web:1", "sh", "-c", script,
        )  # fmt: skip
        before = sorted(task["ID"] for task in lab.running(service))
        updated = lab.run("secret", "update", name, str(tmp_path / "two"))
        assert f"{service} updated" in updated.stderr
        after = lab.running(service)
        assert sorted(task["ID"] for task in after) == before
        assert [task["Status"]["Files"] for task in after] == [[updated.stdout.strip()]] * 2
        lines = eventually(
            "both programs were told",
            lambda: (
                (found := lab.run("service", "logs", "--raw", service).stdout.split())[1:] and found
            ),
        )
        assert lines == [SECOND, SECOND]
        lab.swarmctl("service", "rollback", service)
        say(lab, service, FIRST)
        assert sorted(task["ID"] for task in lab.running(service)) == before
    finally:
        lab.swarmctl("service", "rm", service, check=False)
        lab.run("secret", "rm", "--force", name, check=False)
