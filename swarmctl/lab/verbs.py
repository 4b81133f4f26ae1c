"""The verbs of `swarmctl lab`, each a whole step for a user: locked, checked, undone on error.

Invariant: one verb at a time changes a lab. Raising a lab selects its context; taking it down
selects the one from before, unless the user has chosen another meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from shoal.errors import FailedPrecondition, InvalidArgument, SwarmError
from swarmctl import contexts
from swarmctl.lab import kernel, labs, nodes, record
from swarmctl.lab.plan import LabPlan, NodePlan, check_name, daemon_command, wants_etcd
from swarmctl.lab.record import LabRecord

UP_TIMEOUT_S = 60.0

Report = Callable[[str], None]


class UpOptions(msgspec.Struct, frozen=True):
    """What the user wants of a new lab; an empty subnet is chosen. store: empty, etcd or a URL."""

    name: str
    root: str
    managers: int
    workers: int
    subnet: str
    store: str = ""
    timeout_s: float = UP_TIMEOUT_S


def context_name(lab: str) -> str:
    """The context that stands for a lab."""
    return f"lab-{lab}"


def swarmd_command(lab: LabPlan, node: NodePlan) -> list[str]:
    """How a node's daemon is started: swarmd with the interpreter that runs us."""
    return daemon_command(lab, node, python=sys.executable)


def up(options: UpOptions, *, report: Report, command: labs.Command = swarmd_command) -> LabRecord:
    """Raise a lab and wait until all its nodes are ready; on any error nothing stays.

    Raises: SwarmError; the message ends with the failing node's log.
    """
    kernel.check_machine()
    check_name(options.name)
    if wants_etcd(options.store) and not shutil.which("etcd"):
        raise FailedPrecondition(
            "--store etcd: etcd is missing; install it with: apt-get install etcd-server"
        )
    with record.lock(options.name):
        made = labs.reserve(
            options.root,
            options.name,
            managers=options.managers,
            workers=options.workers,
            subnet=options.subnet,
            store=options.store,
        )
        with _undone_on_error(options.root, made.plan):
            return _raise_lab(made, options, report=report, command=command)


def _raise_lab(
    made: LabRecord, options: UpOptions, *, report: Report, command: labs.Command
) -> LabRecord:
    from swarmctl.lab import cluster  # here: only this verb and `wait` need gRPC

    lab = made.plan
    report(f"start {', '.join(n.name for n in lab.everyone)} on {lab.subnet} ({lab.bridge})")
    labs.raise_nodes(lab, command)
    asyncio.run(cluster.form(lab, timeout_s=options.timeout_s, report=report))
    previous = contexts.load().current
    ready = LabRecord(lab, made.created_at_ns, "up", previous)
    record.write(record.lab_file(lab.directory), ready)
    save_context(lab)
    return ready


def save_context(lab: LabPlan) -> None:
    """Make the lab's context, with every node's socket, and select it."""
    sockets = {node.name: f"unix://{nodes.paths_of(lab, node).socket}" for node in lab.nodes}
    name = context_name(lab.name)
    contexts.save_context(
        name,
        contexts.Context(
            host=sockets[lab.nodes[0].name],
            others=tuple(sockets[node.name] for node in lab.nodes[1:] if node.role == "manager"),
            nodes=sockets,
            description=f"lab in {lab.directory}",
        ),
    )
    contexts.use(name)


def forget_context(lab: str, previous: str) -> None:
    """Remove the lab's context; select `previous` if the lab's was still selected."""
    name = context_name(lab)
    stored = contexts.load()
    if name not in stored.contexts:
        return
    contexts.remove(name)
    if stored.current == name and previous in stored.contexts and previous != name:
        contexts.use(previous)


@contextmanager
def _undone_on_error(root: str, lab: LabPlan) -> Iterator[None]:
    try:
        yield
    except SwarmError as error:
        tail = _tail(lab, str(error.context.get("node", "")))
        error.message += tail
        _take_down_after(error, root, lab)
        raise
    except BaseException as error:
        _take_down_after(error, root, lab)
        raise


def _tail(lab: LabPlan, name: str) -> str:
    known = [node for node in lab.everyone if node.name == name]
    text = nodes.log_tail(nodes.paths_of(lab, known[0])) if known else ""
    return f"\n--- last lines of {name}'s log ---\n{text}" if text else ""


def _take_down_after(error: BaseException, root: str, lab: LabPlan) -> None:
    try:
        forget_context(lab.name, "")
        labs.take_down(root, lab.name)
    except SwarmError as second:
        # The first error is the one to show; this one tells that there is something left.
        error.add_note(f"taking the lab down failed too: {second}; run `swarmctl lab down`")


def down(root: str, name: str) -> bool:
    """Take a lab down, from whatever state it is in. Returns whether there was anything."""
    kernel.check_machine()
    check_name(name)
    with record.lock(name):
        known = record.find_lab(root, name)
        existed = labs.take_down(root, name)
        forget_context(name, known.previous_context if known else "")
    return existed


@contextmanager
def node_of(root: str, name: str, node: str) -> Iterator[tuple[LabPlan, NodePlan]]:
    """Hold the lab's lock around a change to one of its nodes."""
    kernel.check_machine()
    with record.lock(name):
        lab = record.read_lab(root, name).plan
        yield lab, lab.node(node)


def start(
    root: str,
    name: str,
    node: str,
    *,
    timeout_s: float,
    command: labs.Command = swarmd_command,
    extra: tuple[str, ...] = (),
) -> None:
    """Start a node that was killed or went down; returns once its daemon answers.

    extra: further words of its command line.
    Raises: SwarmError, the message ending with the node's log.
    """
    from swarmctl.lab import cluster  # here: see `_raise_lab`

    with node_of(root, name, node) as (lab, known):
        kernel.make_switch(lab)
        kernel.make_pin_directory(f"{lab.directory}/ns")
        nodes.prepare(lab, known)
        nodes.launch(lab, known, [*command(lab, known), *extra])
        wait: Any = cluster.wait_listening if known.role == "store" else cluster.wait_serving
        try:
            asyncio.run(wait(lab, known, deadline_s=time.monotonic() + timeout_s))
        except SwarmError as error:
            error.message += _tail(lab, node)
            raise


def wait(root: str, name: str, names: tuple[str, ...], *, timeout_s: float) -> None:
    """Wait until the cluster says READY for these nodes, or all. Raises: DeadlineExceeded."""
    from swarmctl.lab import cluster  # here: see `_raise_lab`

    kernel.check_machine()
    lab = record.read_lab(root, name).plan
    wanted = {node.name: node for node in (lab.node(name) for name in names)}
    stores = [wanted.pop(node.name) for node in lab.stores if node.name in wanted]
    deadline_s = time.monotonic() + timeout_s
    for store in stores:
        asyncio.run(cluster.wait_listening(lab, store, deadline_s=deadline_s))
    if wanted or not stores:
        ready = cluster.wait_ready(lab, deadline_s=deadline_s, names=frozenset(wanted) or None)
        asyncio.run(ready)


def standing(lab: LabPlan) -> dict[str, str]:
    """Each node's role now, by name; empty when no manager answers."""
    from swarmctl.lab import cluster  # here: see `_raise_lab`

    return asyncio.run(cluster.standing(lab))


def locked(lab: LabPlan) -> frozenset[str]:
    """Names of the nodes that wait for the unlock key."""
    from swarmctl.lab import cluster  # here: see `_raise_lab`

    return asyncio.run(cluster.locked(lab))


def execute(root: str, name: str, node: str, command: tuple[str, ...]) -> None:
    """Become `command` inside the node's namespaces. Does not return."""
    kernel.check_machine()
    if not command:
        raise InvalidArgument("COMMAND is missing: `swarmctl lab exec NODE -- COMMAND`")
    lab = record.read_lab(root, name).plan
    words = [*kernel.enter(nodes.paths_of(lab, lab.node(node))), *command]
    os.execvp(words[0], words)  # noqa: S606 - a fixed program with a list of arguments
