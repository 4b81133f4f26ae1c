"""The groups that were recorded at one node, with a registry on its port 5000."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.conformance.recorded import Recorded, read

GROUPS = (
    "basic", "run", "container", "image", "volume", "network", "system", "attach", "registry",
)  # fmt: skip

_HERE = Path(__file__).parent / "recordings"

INPUTS: Mapping[str, str] = {
    "docker run -i --rm busybox cat": "line1\nline2\n",
    "docker run -i --rm -a stdin -a stdout busybox cat": "x\n",
    "docker start -ai cc2": "abc\n",
    "docker exec -i c1 cat": "stdin-data\n",
}
"""What was typed; nothing else was."""


def recorded(group: str) -> list[Recorded]:
    """A group's commands in order."""
    return read(_HERE, group)
