"""How labs and their nodes are shown: a table for people, JSON and templates for programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from shoal.docker.values import Record
from swarmctl import output
from swarmctl.lab.labs import NodeRow
from swarmctl.lab.plan import address6
from swarmctl.lab.processes import Family
from swarmctl.lab.record import LabRecord

_Command = Callable[..., Any]

NODE_COLUMNS = {
    "Name": "NAME",
    "Role": "ROLE",
    "Address": "ADDRESS",
    "Status": "STATUS",
    "Socket": "SOCKET",
    "DockerSocket": "DOCKER SOCKET",
}
KINDS = ("daemon", "helper", "container")
PROCESS_COLUMNS = {"Pid": "PID", "Kind": "KIND", "Command": "COMMAND"}
LAB_COLUMNS = {
    "Name": "NAME",
    "Managers": "MANAGERS",
    "Workers": "WORKERS",
    "Subnet": "SUBNET",
    "Status": "STATUS",
    "Directory": "DIRECTORY",
}


def format_options(command: _Command) -> _Command:
    """Adds --format and --quiet."""
    command = click.option("-q", "--quiet", is_flag=True, help="Names only")(command)
    return click.option(
        "--format", "template", default="", metavar="FORMAT", help="table, json or a Go template"
    )(command)


def nodes(rows: Sequence[NodeRow], *, template: str, quiet: bool) -> None:
    """Print nodes."""
    records = [node_fields(row) for row in rows]
    text = output.rows_text(records, columns=NODE_COLUMNS, template=template, quiet=quiet)
    output.write(text)


def labs(found: Sequence[LabRecord], *, template: str, quiet: bool) -> None:
    """Print labs."""
    records = [lab_fields(lab) for lab in found]
    text = output.rows_text(records, columns=LAB_COLUMNS, template=template, quiet=quiet)
    output.write(text)


def processes(family: Family, *, kind: str | None, template: str, quiet: bool) -> None:
    """Print a node's processes, or those of one kind; `quiet`: pids alone."""
    records = [row for row in process_fields(family) if kind in (None, row["Kind"])]
    text = output.rows_text(records, columns=PROCESS_COLUMNS, template=template, quiet=quiet)
    output.write(text)


def node_fields(row: NodeRow) -> Record:
    """A node under the names that templates use; all of them text."""
    return Record(
        {
            "Name": row.name,
            "Role": row.role,
            "Address": row.address,
            "Address6": address6(row.address),
            "Status": row.status,
            "Socket": row.socket,
            "DockerSocket": row.docker_socket,
            "Pid": str(row.pid or ""),
            "Metrics": row.metrics,
            "Log": row.log,
        }
    )


def process_fields(family: Family) -> list[Record]:
    """A node's processes under the names that templates use; all of them text."""
    groups = (family.daemons, family.helpers, family.containers)
    return [
        Record({"Pid": str(process.pid), "Kind": kind, "Command": " ".join(process.argv)})
        for kind, members in zip(KINDS, groups, strict=True)
        for process in members
    ]


def lab_fields(lab: LabRecord) -> Record:
    """A lab under the names that templates use; all of them text."""
    roles = [node.role for node in lab.plan.nodes]
    return Record(
        {
            "Name": lab.plan.name,
            "Managers": str(roles.count("manager")),
            "Workers": str(roles.count("worker")),
            "Subnet": lab.plan.subnet,
            "Status": lab.phase,
            "Directory": lab.plan.directory,
        }
    )
