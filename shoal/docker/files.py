"""Secrets and configs in the shapes of Docker's API, for the API and for `--format`.

Invariant: the data of a secret is in none of them.
"""

from __future__ import annotations

import base64

from shoal.docker.values import OpenMap, Record, record
from shoal.docker.words import timestamp
from shoal.model.files import FileRow
from shoal.model.objects import Config


def file_json(row: FileRow) -> Record:
    """One as `GET /secrets/{id}` or `/configs/{id}` answers."""
    annotations = row.spec.annotations
    spec = {"Name": annotations.name, "Labels": OpenMap(annotations.labels)}
    if isinstance(row, Config):
        spec["Data"] = base64.b64encode(row.spec.data).decode()
    templating = row.spec.templating
    return Record(
        {
            "ID": row.id,
            "Version": record({"Index": row.meta.version.index}),
            "CreatedAt": timestamp(row.meta.created_at_ns),
            "UpdatedAt": timestamp(row.meta.updated_at_ns),
            "Spec": record(
                spec,
                Templating=record({"Name": templating.name}) if templating is not None else None,
            ),
        }
    )
