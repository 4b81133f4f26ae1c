"""Where the API is served besides its unix socket."""

from __future__ import annotations

from pathlib import Path

import msgspec


class TlsSettings(msgspec.Struct, frozen=True):
    """Where to listen, and a directory with ca.pem, cert.pem and key.pem."""

    host: str
    port: int
    directory: Path
