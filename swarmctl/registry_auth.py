"""Credentials for an image's registry, as `docker login` has left them with the user.

They come from `$DOCKER_CONFIG/config.json` (`~/.docker/config.json`), or from the helper program it
names. The result is what services carry; nobody logged in is no error.
"""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from shoal.errors import FailedPrecondition
from shoal.model.reference import DEFAULT_REGISTRY, parse_reference

HELPER_S = 30.0
_HUB = "https://index.docker.io/v1/"
_HELPER = re.compile(r"[A-Za-z0-9._-]{1,64}")
_BY_TOKEN = "<token>"  # noqa: S105 - the user name helpers give for an identity token


def registry_auth(image: str, directory: Path | None = None) -> str:
    """The credentials for an image's registry, encoded; "" when there are none.

    directory: of the file, instead of the user's. Raises FailedPrecondition, InvalidArgument.
    """
    registry = parse_reference(image).registry
    file = (directory or _directory()) / "config.json"
    try:
        found = json.loads(file.read_bytes())
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise FailedPrecondition(f"{file}: cannot be read: {error}") from error
    server = _HUB if registry == DEFAULT_REGISTRY else registry
    if not isinstance(found, dict):
        raise FailedPrecondition(f"{file}: is no JSON object")
    helper = (found.get("credHelpers") or {}).get(registry) or found.get("credsStore")
    entry = _from_helper(helper, server) if helper else _from_file(found.get("auths") or {}, server)
    if not entry:
        return ""
    return base64.urlsafe_b64encode(
        json.dumps({**entry, "serveraddress": server}).encode()
    ).decode()


def _directory() -> Path:
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def _from_file(auths: dict[str, Any], server: str) -> dict[str, str]:
    for name in (server, f"https://{server}", f"http://{server}", f"https://{server}/v1/"):
        entry = auths.get(name)
        if isinstance(entry, dict) and entry:
            return {
                key: str(entry[key])
                for key in ("auth", "identitytoken", "registrytoken")
                if entry.get(key)
            }
    return {}


def _from_helper(helper: str, server: str) -> dict[str, str]:
    if not _HELPER.fullmatch(helper):
        raise FailedPrecondition(f"credential helper {helper!r}: is no name of a program")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run(
            [program, "get"], input=server, capture_output=True, text=True, timeout=HELPER_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FailedPrecondition(f"{program}: {error}") from error
    if done.returncode != 0:
        if "not found" in (done.stdout + done.stderr).lower():
            return {}
        raise FailedPrecondition(f"{program}: {(done.stderr or done.stdout).strip()[:500]}")
    try:
        answer = json.loads(done.stdout)
        name, secret = str(answer["Username"]), str(answer["Secret"])
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(f"{program}: its answer cannot be read") from error
    if name == _BY_TOKEN:
        return {"identitytoken": secret}
    return {"username": name, "password": secret}
