"""What containers see: by the docker command line, from any daemon; and how two views differ.

Only what must be equal is compared: names of the machine, ids, device numbers of file systems and
directories of stores are taken out first.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping
from typing import Any

from tests.parity.image import COMMAND
from tests.support.patience import FACTOR

IMAGE = "probe"
TIMEOUT_S = 120.0 * FACTOR

WAYS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "bounded": (
        "--read-only", "--cap-drop", "ALL", "--cap-add", "CHOWN", "--user", "7:8", "-m", "64m",
        "--pids-limit", "50", "--security-opt", "no-new-privileges", "--tmpfs", "/tmp",
        "--ulimit", "nofile=100:200", "--cpu-shares", "512", "--oom-score-adj", "500",
        "--workdir", "/run", "--group-add", "9",
    ),
    "unconfined": ("--security-opt", "seccomp=unconfined"),
}  # fmt: skip
"""By name: the options of `docker run`."""

_VARYING = re.compile(
    r"[0-9a-f]{64}|/[^ ,:]*/(overlay2|snapshots|containers)/[^ ,:]*|nr_inodes=\d+|size=\d{6,}k"
)


def look(host: str, way: str, docker: str) -> dict[str, Any]:
    """One container's view. host: of the daemon. Raises: CalledProcessError, TimeoutExpired."""
    container = _docker(docker, host, "run", "-d", "--network", "none", *WAYS[way], IMAGE, *COMMAND)
    try:
        deadline_s = time.monotonic() + TIMEOUT_S
        while _docker(docker, host, "inspect", "-f", "{{.State.Running}}", container) == "true":
            assert time.monotonic() < deadline_s, "the probe does not end"
            time.sleep(0.05)
        facts: dict[str, Any] = json.loads(_docker(docker, host, "logs", container))
    finally:
        _docker(docker, host, "rm", "-f", container)
    return facts


def comparable(facts: Mapping[str, Any]) -> dict[str, str]:
    """A view as flat lines that two machines can share."""
    flat: dict[str, str] = {}
    for mount in facts["mounts"]:
        kind = mount["kind"] if not mount["at"].startswith("/etc/") else "file"
        options = ",".join(sorted(mount["options"].split(",")))
        flat[f"mounts: {mount['at']}"] = f"{kind} {options} {mount['propagation']}".strip()
    for group, content in facts.items():
        if group in ("mounts", "processes"):
            continue
        if group == "namespaces":
            own = {name: os.readlink(f"/proc/self/ns/{name}") for name in content}
            content = {name: "host's" if own[name] == at else "own" for name, at in content.items()}
        _flatten(group, content, flat)
    return {name: _VARYING.sub("...", value) for name, value in flat.items()}


def _flatten(name: str, value: Any, into: dict[str, str]) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _flatten(f"{name}: {key}", inner, into)
    elif isinstance(value, list):
        into[name] = " ".join(map(str, value))
    else:
        into[name] = str(value)


def differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """By name: what is seen here, and there; "-" where it is not."""
    return {
        name: (ours.get(name, "-"), theirs.get(name, "-"))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name, "-") != theirs.get(name, "-")
    }


def _docker(docker: str, host: str, *arguments: str) -> str:
    done = subprocess.run(
        [docker, "-H", host, *arguments],
        check=True, capture_output=True, text=True, timeout=TIMEOUT_S,
    )  # fmt: skip
    return done.stdout.strip()
