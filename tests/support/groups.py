"""Which version of control groups limits containers on this machine, for what differs by it."""

from __future__ import annotations

import os

VERSION = 1 if os.path.isdir("/sys/fs/cgroup/memory") else 2
V1, V2 = VERSION == 1, VERSION == 2
