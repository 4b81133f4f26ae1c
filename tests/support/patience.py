"""How much longer than usual things may take: `SHOAL_PATIENCE`, set in virtual machines."""

from __future__ import annotations

import os

FACTOR = float(os.environ.get("SHOAL_PATIENCE", "1"))
