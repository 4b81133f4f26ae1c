"""Rules that all objects have in common: their names and labels. Pure."""

from __future__ import annotations

import re

from shoal.errors import InvalidArgument
from shoal.model.types import Annotations

NAME_LENGTH_MAX = 63
LABELS_MAX = 1_024

# Without nested repeats: a name that almost fits must not cost exponential time.
_NAME = re.compile(r"[A-Za-z0-9](?:[-_A-Za-z0-9]*[A-Za-z0-9])?")


def object_name(field: str, name: str) -> None:
    """Refuse a name that is missing, too long or not letters, digits, `-` and `_`."""
    if not name:
        raise InvalidArgument(f"{field}: must be given")
    if len(name) > NAME_LENGTH_MAX:
        raise InvalidArgument(f"{field}: {len(name)} characters, at most {NAME_LENGTH_MAX}")
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{field}: {name!r} must be letters and digits, with - and _ in between"
        )


def object_labels(field: str, annotations: Annotations) -> None:
    """Refuse too many labels, and keys that could not be asked for."""
    if len(annotations.labels) > LABELS_MAX:
        raise InvalidArgument(f"{field}: {len(annotations.labels)}, at most {LABELS_MAX}")
    for key in annotations.labels:
        if not key or any(character.isspace() for character in key):
            raise InvalidArgument(f"{field}: {key!r} must not be empty or hold spaces")
