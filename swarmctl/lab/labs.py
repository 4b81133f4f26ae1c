"""A whole lab: raised node by node in parallel, listed, and taken down without a trace.

Invariants: the record is on disk before the first kernel object; an error while raising takes down
all that was made; `down` works from the name alone, from any half-made state, and twice. Subnets
are chosen under one machine-wide lock, so labs raised at the same time never share one.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from shoal.errors import AlreadyExists, Internal, InvalidArgument, SwarmError
from swarmctl.lab import cgroups, kernel, nodes, record
from swarmctl.lab.plan import (
    CGROUP_ROOT,
    ETCD_PORT,
    METRICS_PORT,
    LabPlan,
    NodePlan,
    bridge_name,
    check_counts,
    check_name,
    check_store,
    choose_subnet,
    first_overlap,
    lab_cgroup,
    name_hash,
    node_paths,
    nodes_of_netns,
    parse_subnet,
    plan_lab,
    switch_name,
)
from swarmctl.lab.record import LabRecord

_PARALLEL = 8
_NODE = re.compile(r"[emw][1-9][0-9]{0,2}")

Command = Callable[[LabPlan, NodePlan], list[str]]


class NodeRow(msgspec.Struct, frozen=True):
    """What `lab ps` shows of a node."""

    name: str
    role: str
    address: str
    status: str
    socket: str
    docker_socket: str
    pid: int
    metrics: str
    log: str


def reserve(
    root: str, name: str, *, managers: int, workers: int, subnet: str = "", store: str = ""
) -> LabRecord:
    """Plan a lab, write its record and make its switch. The caller holds the lab's lock.

    Raises: AlreadyExists while anything of a lab of that name is on the machine.
    """
    check_name(name)
    check_counts(managers, workers)
    check_store(store)
    _refuse_existing(root, name)
    with record.lock("subnets"):
        taken = kernel.routes_in_use() + [lab.plan.subnet for lab in _all_labs(root)]
        network = parse_subnet(subnet) if subnet else choose_subnet(taken)
        if clash := first_overlap(network, taken):
            raise InvalidArgument(f"--subnet {network}: this machine already uses {clash}")
        plan = plan_lab(
            name,
            managers=managers,
            workers=workers,
            subnet=network,
            directory=root,
            store=store,
        )
        made = LabRecord(plan, time.time_ns())
        os.makedirs(root, mode=0o755, exist_ok=True)
        os.makedirs(plan.directory, mode=0o700, exist_ok=True)
        record.write(record.lab_file(plan.directory), made)
        try:
            kernel.make_switch(plan)
        except BaseException:
            take_down(root, name)
            raise
    return made


def raise_nodes(plan: LabPlan, command: Command) -> None:
    """Make every node and start its daemon, several at a time."""
    kernel.make_pin_directory(f"{plan.directory}/ns")

    def one(node: NodePlan) -> None:
        try:
            nodes.prepare(plan, node)
            nodes.launch(plan, node, command(plan, node))
        except SwarmError as error:
            error.context["node"] = node.name
            raise

    with ThreadPoolExecutor(_PARALLEL) as pool:
        for done in [pool.submit(one, node) for node in plan.everyone]:
            done.result()


def take_down(root: str, name: str) -> bool:
    """Remove a lab and all it made. Returns whether there was anything. The caller holds the lock.

    Raises: the first error, after everything else was tried; then run it again.
    """
    check_name(name)
    directory = f"{root}/{name}"
    existed = _remains(root, name)
    errors: list[SwarmError] = []
    known = record.find_lab(root, name)
    names = {n.name for n in known.plan.everyone} if known else set()
    names |= set(nodes_of_netns(name, kernel.netns_names())) | _nodes_of_directory(directory)
    for node in sorted(names):
        veth = f"s{name_hash(name)}{node}"
        paths = node_paths(directory, name, node)
        _collect(errors, partial(nodes.switch_off, name, node, veth=veth, paths=paths))
    _collect(errors, lambda: kernel.remove_switch(name))
    _collect(errors, lambda: cgroups.remove(lab_cgroup(name)))
    cgroups.remove_if_empty(f"/{CGROUP_ROOT}")
    _collect(errors, lambda: kernel.unmount_below(directory))
    if errors:
        raise errors[0]
    _remove_directory(directory)
    _remove_empty_root(root)
    return existed


def rows(plan: LabPlan) -> list[NodeRow]:
    """Every node as it is now."""
    return [_row(plan, node) for node in plan.everyone]


def _row(plan: LabPlan, node: NodePlan) -> NodeRow:
    paths = nodes.paths_of(plan, node)
    running = nodes.daemon(plan, node)
    is_store = node.role == "store"
    port = ETCD_PORT if is_store else METRICS_PORT
    return NodeRow(
        name=node.name,
        role=node.role,
        address=node.address,
        status=nodes.status(plan, node),
        socket="" if is_store else paths.socket,
        docker_socket="" if is_store else paths.docker_socket,
        pid=running.pid if running else 0,
        metrics=f"http://{node.address}:{port}/metrics",
        log=paths.log,
    )


def _refuse_existing(root: str, name: str) -> None:
    if _remains(root, name):
        raise AlreadyExists(f"lab {name!r} exists already; `swarmctl lab down --name {name}` first")


def _remains(root: str, name: str) -> bool:
    return bool(
        os.path.exists(f"{root}/{name}")
        or kernel.link_exists(bridge_name(name))
        or switch_name(name) in kernel.netns_names()
        or nodes_of_netns(name, kernel.netns_names())
        or cgroups.exists(lab_cgroup(name))
    )


def _all_labs(root: str) -> list[LabRecord]:
    found = (record.find_lab(root, name) for name in record.list_labs(root))
    return [lab for lab in found if lab]


def _nodes_of_directory(directory: str) -> set[str]:
    try:
        return {entry for entry in os.listdir(directory) if _NODE.fullmatch(entry)}
    except FileNotFoundError:
        return set()


def _collect(errors: list[SwarmError], step: Callable[[], object]) -> None:
    try:
        step()
    except SwarmError as error:
        errors.append(error)


def _remove_directory(directory: str) -> None:
    try:
        shutil.rmtree(directory)
    except FileNotFoundError:
        return
    except OSError as error:
        raise Internal(f"{directory} cannot be removed: {error}") from error


def _remove_empty_root(root: str) -> None:
    try:
        os.rmdir(root)
    except OSError:
        return  # other labs live there, or it is not ours alone
