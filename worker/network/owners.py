"""Network namespaces whose owner is not the node's root, but a container's.

Root inside may set up, sniff and show (`/sys`) only a network namespace that its own user namespace
owns. The owner of a namespace is fixed when it is made: `birth` makes it, a process of its own.
Blocking: for threads. Bounded by BIRTH_S.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

_BIRTH = str(Path(__file__).with_name("birth.py"))
BIRTH_S = 20.0


class Owner(msgspec.Struct, frozen=True):
    """A new user namespace with these maps, as the kernel reads them; or the one at `userns`."""

    uid_map: str
    gid_map: str
    userns: str = ""


def make(owner: Owner, use: Callable[[str], None]) -> None:
    """Make a namespace and call `use` with a path to it, good only for as long as that runs.

    Raises: OSError.
    """
    command = [sys.executable, "-I", "-S", _BIRTH, *([owner.userns] if owner.userns else [])]
    until = time.monotonic() + BIRTH_S
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            _await(process, b"u", until)
            if not owner.userns:
                for kind, text in (("uid", owner.uid_map), ("gid", owner.gid_map)):
                    Path(f"/proc/{process.pid}/{kind}_map").write_text(text, encoding="ascii")
            _tell(process)
            _await(process, b"n", until)
            use(f"/proc/{process.pid}/ns/net")
        finally:
            process.kill()


def _tell(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def _await(process: subprocess.Popen[bytes], word: bytes, until: float) -> None:
    assert process.stdout is not None
    assert process.stderr is not None
    fd = process.stdout.fileno()
    ready, _, _ = select.select([fd], [], [], max(until - time.monotonic(), 0))
    if not ready:
        raise TimeoutError(f"a network namespace in a user namespace: not made in {BIRTH_S:.0f} s")
    if os.read(fd, 1) != word:
        reason = process.stderr.read(4096).decode("utf-8", "replace").strip()
        raise OSError(f"a network namespace in a user namespace: {reason or 'its process died'}")
