"""A node whose containers have ids of their own: its /etc/subuid is laid over the machine's."""

from __future__ import annotations

from pathlib import Path

from tests.integration.engine.daemon import EngineNode
from tests.integration.engine.seeded import seeded_node

UID, GID = 1_000_000, 2_000_000
USER = "dockremap"
_OVER = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc && exec "$@"'


def remapped_node() -> EngineNode:
    """Has `busybox`; not started yet."""
    return remap(seeded_node("--userns-remap", "default"))


def remap(node: EngineNode) -> EngineNode:
    """Give a node that is made with the option accounts to look it up in.

    The machine's are as they were: only the node's processes see these.
    """
    try:
        etc = node.base / "etc"
        etc.mkdir()
        passwd = Path("/etc/passwd").read_text()
        (etc / "passwd").write_text(f"{passwd}{USER}:x:59998:59999::/:/bin/false\n")
        (etc / "subuid").write_text(f"{USER}:{UID}:65536\n")
        (etc / "subgid").write_text(f"{USER}:{GID}:65536\n")
    except BaseException:
        node.close()
        raise
    node.prefix += ("unshare", "--mount", "sh", "-c", _OVER, str(etc))
    return node
