"""Secrets and configs as rows of their lists, and for people."""

from __future__ import annotations

from shoal.docker.values import Record
from shoal.docker.words import timestamp
from shoal.model.files import FileRow
from shoal.model.objects import Config, Secret
from shoal.model.types import Driver
from swarmctl.render.rows import Columns
from swarmctl.render.times import distance

SECRET_COLUMNS: Columns = {
    "ID": "ID",
    "Name": "NAME",
    "Driver": "DRIVER",
    "CreatedAt": "CREATED",
    "UpdatedAt": "UPDATED",
}
CONFIG_COLUMNS: Columns = {key: text for key, text in SECRET_COLUMNS.items() if key != "Driver"}


def file_row(row: FileRow, now_ns: int) -> Record:
    """One in a list."""
    annotations = row.spec.annotations
    fields = {
        "ID": row.id,
        "Name": annotations.name,
        "CreatedAt": f"{distance(now_ns - row.meta.created_at_ns)} ago",
        "UpdatedAt": f"{distance(now_ns - row.meta.updated_at_ns)} ago",
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(annotations.labels.items())),
    }
    if isinstance(row, Secret):
        fields["Driver"] = (row.spec.driver or Driver()).name
    return Record(fields)


def file_text(row: FileRow) -> str:
    """One for people; of a secret never the data."""
    annotations = row.spec.annotations
    lines = [f"ID:\t\t\t{row.id}", f"Name:\t\t\t{annotations.name}", "Labels:"]
    lines += [f" - {key}={value}" for key, value in sorted(annotations.labels.items())]
    if isinstance(row, Secret):
        lines.append(f"Driver:\t\t\t{(row.spec.driver or Driver()).name}")
    lines.append(f"Created at:            \t{timestamp(row.meta.created_at_ns)}")
    lines.append(f"Updated at:            \t{timestamp(row.meta.updated_at_ns)}")
    if isinstance(row, Config):
        lines += ["Data:", row.spec.data.decode("utf-8", "replace")]
    return "\n".join(lines) + "\n"
