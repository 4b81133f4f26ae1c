"""Debian's docker-registry as a process of its own: plain or with TLS and passwords."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

REGISTRY = shutil.which("docker-registry")
SKOPEO = shutil.which("skopeo")
MISSING = "not installed: apt-get install docker-registry skopeo"
DEADLINE_S = 60.0
PORTS_TRIED = 5
USER, PASSWORD = "somebody", "secret"
# bcrypt of PASSWORD, cost 4
_PASSWORDS = f"{USER}:$2y$04$2WMjfxpO4lo1x1lQ8o5TbuYshUGHqq6fMxD0EBofYkmsRFIT4fMGW\n"


def free_port() -> int:
    """A port nobody listens on, now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def a_registry(
    base: Path,
    *,
    guarded: bool = False,
    tls: tuple[Path, Path] | None = None,
    inside: Sequence[str] = (),
    port: int = 0,
) -> Iterator[str]:
    """`127.0.0.1:PORT` of a registry under `base`.

    guarded: asks for USER and PASSWORD. tls: certificate and key. inside: what runs a command in
    another network namespace. port: the one it must have, where nobody else can have it.
    """
    base.mkdir(parents=True, exist_ok=True)
    if guarded:
        (base / "passwords").write_text(_PASSWORDS)
    for _ in range(PORTS_TRIED):
        address = f"127.0.0.1:{port or free_port()}"
        process = _started(base, address, guarded, tls, inside)
        try:
            if _answers(address, process, inside):
                yield address
                return
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    raise AssertionError((base / "log").read_text())


def _started(
    base: Path,
    address: str,
    guarded: bool,
    tls: tuple[Path, Path] | None,
    inside: Sequence[str],
) -> subprocess.Popen[bytes]:
    assert REGISTRY is not None
    lines = [
        "version: 0.1", "log: {level: error, accesslog: {disabled: true}}",
        f"storage: {{filesystem: {{rootdirectory: {base}/data}}}}",
        f"http: {{addr: '{address}'{_tls(tls)}}}",
    ]  # fmt: skip
    if guarded:
        lines.append(f"auth: {{htpasswd: {{realm: here, path: {base}/passwords}}}}")
    (base / "config.yml").write_text("\n".join(lines) + "\n")
    with (base / "log").open("ab") as log:
        return subprocess.Popen(
            [*inside, REGISTRY, "serve", base / "config.yml"], stdout=log, stderr=log
        )


def _tls(tls: tuple[Path, Path] | None) -> str:
    return "" if tls is None else f", tls: {{certificate: {tls[0]}, key: {tls[1]}}}"


def _answers(address: str, process: subprocess.Popen[bytes], inside: Sequence[str]) -> bool:
    """Whether it listens; False when somebody else has taken the port meanwhile."""
    host, _, port = address.partition(":")
    probe = [*inside, "bash", "-c", f"exec 3<>/dev/tcp/{host}/{port}"]
    deadline_s = time.monotonic() + DEADLINE_S
    while process.poll() is None:
        if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
            time.sleep(0.1)  # one that could not listen ends by itself
            return process.poll() is None
        assert time.monotonic() < deadline_s, "the registry does not listen"
        time.sleep(0.05)
    return False


def skopeo(*arguments: str) -> str:
    """What a skopeo command prints; it must succeed."""
    assert SKOPEO is not None
    done = subprocess.run(
        [SKOPEO, "--insecure-policy", *arguments],
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout
