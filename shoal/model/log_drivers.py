"""Log drivers and the options each knows. Pure; what an option's value means is the worker's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

ATTRIBUTES: Final = frozenset(("labels", "labels-regex", "env", "env-regex", "tag"))
FILE: Final = frozenset(("max-size", "max-file", "compress"))
_CACHE = frozenset(("cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"))
_TLS = frozenset(
    ("syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify")
)
OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    "json-file": FILE | ATTRIBUTES,
    "local": FILE,
    "none": frozenset(),
    "syslog": ATTRIBUTES | _CACHE | _TLS | {"syslog-address", "syslog-facility", "syslog-format"},
    "journald": ATTRIBUTES | _CACHE,
}
DELIVERY: Final = frozenset(("mode", "max-buffer-size"))
"""Options of every driver."""
DEFAULT: Final = "json-file"
TASK_OPTIONS: Final[Mapping[str, frozenset[str]]] = {
    **{name: options | DELIVERY for name, options in OPTIONS.items()},
    DEFAULT: frozenset(("max-size", "max-file")),
}
"""What services may say."""
