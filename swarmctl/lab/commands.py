"""`swarmctl lab`: whole clusters on this machine, and the troubles they may meet."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import click
import msgspec

from swarmctl.lab import kernel, labs, nodes, record, show, verbs
from swarmctl.lab.plan import LabPlan, NodePlan

_Command = Callable[..., Any]


def _dir_option(command: _Command) -> _Command:
    return click.option(
        "--dir",
        "root",
        envvar="SHOAL_LAB_DIR",
        default=record.DEFAULT_DIRECTORY,
        show_default=True,
        show_envvar=True,
        type=click.Path(file_okay=False, readable=False, resolve_path=True),
        help="Where labs keep their state",
    )(command)


def _lab_options(command: _Command) -> _Command:
    name = click.option("--name", default="default", show_default=True, help="The lab")
    return name(_dir_option(command))


def _node_argument(command: _Command) -> _Command:
    return click.argument("node")(_lab_options(command))


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.group()
def lab() -> None:
    """A whole cluster on this machine.

    Every node is a real daemon in its own network namespace, with its own address, state
    directory and control groups. Nodes can be killed, frozen, cut off and healed.
    """


@lab.command()
@click.option("--managers", default=1, show_default=True, type=int, help="Number of managers")
@click.option("--workers", default=2, show_default=True, type=int, help="Number of workers")
@click.option(
    "--store",
    default="",
    metavar="etcd|URL",
    help="Where managers keep their state: an etcd of the lab's own, or the one at"
    " etcd://HOST:PORT,.../PREFIX  [default: their own logs]",
)
@click.option("--subnet", default="", metavar="CIDR", help="Network of the nodes [10.89.N.0/24]")
@click.option(
    "--timeout", default=verbs.UP_TIMEOUT_S, show_default=True, help="Seconds to wait for all nodes"
)
@_lab_options
def up(
    *,
    managers: int,
    workers: int,
    store: str,
    subnet: str,
    timeout: float,
    name: str,
    root: str,
) -> None:
    """Raise a lab, wait until its nodes are ready, and select its context."""
    options = verbs.UpOptions(
        name=name,
        root=root,
        managers=managers,
        workers=workers,
        subnet=subnet,
        store=store,
        timeout_s=timeout,
    )
    made = verbs.up(options, report=_say)
    context = verbs.context_name(name)
    click.echo(f"lab {name} is up: {len(made.plan.nodes)} nodes, context {context} selected")


@lab.command()
@_lab_options
def down(*, name: str, root: str) -> None:
    """Take a lab down and leave nothing of it behind; no error when there is none."""
    known = record.find_lab(root, name)
    existed = verbs.down(root, name)
    if known and known.plan.store and not known.plan.stores:
        _say(f"what it kept in {known.plan.store} stays there: `etcdctl del --prefix` removes it")
    click.echo(f"lab {name} is down" if existed else f"lab {name}: nothing to take down")


@lab.command("ls")
@show.format_options
@_dir_option
def list_(*, template: str, quiet: bool, root: str) -> None:
    """List the labs of this machine."""
    found = [record.find_lab(root, each) for each in record.list_labs(root)]
    show.labs([each for each in found if each], template=template, quiet=quiet)


@lab.command()
@show.format_options
@_lab_options
def ps(*, template: str, quiet: bool, name: str, root: str) -> None:
    """List a lab's nodes and what has become of them.

    ROLE is the node's now (`leader`: the manager that leads), or as planned when nobody answers.
    """
    kernel.check_machine()
    plan = record.read_lab(root, name).plan
    roles = verbs.standing(plan)
    locked = verbs.locked(plan)
    rows = [
        msgspec.structs.replace(
            row,
            role=roles.get(row.name, row.role),
            status="locked" if row.name in locked and row.status == "running" else row.status,
        )
        for row in labs.rows(plan)
    ]
    show.nodes(rows, template=template, quiet=quiet)


@lab.command()
@click.option("--kind", type=click.Choice(show.KINDS), help="Only these")
@show.format_options
@_node_argument
def top(*, node: str, kind: str | None, template: str, quiet: bool, name: str, root: str) -> None:
    """List a node's processes: its daemons, its helpers and what runs in its containers."""
    kernel.check_machine()
    plan = record.read_lab(root, name).plan
    family = nodes.family(plan, plan.node(node))
    show.processes(family, kind=kind, template=template, quiet=quiet)


@lab.command("exec", context_settings={"allow_interspersed_args": False})
@click.argument("node")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@_lab_options
def execute(*, node: str, command: tuple[str, ...], name: str, root: str) -> None:
    """Run COMMAND in a node's network and mount namespaces."""
    verbs.execute(root, name, node, command[1:] if command[0] == "--" else command)


@lab.command()
@click.option("--helpers", is_flag=True, help="Kill keeper, supervisor and logger as well")
@click.option("--hard", is_flag=True, help="As a power cut: containers and the network too")
@_node_argument
def kill(*, node: str, helpers: bool, hard: bool, name: str, root: str) -> None:
    """Kill a node's daemons with SIGKILL; its containers run on, unless --hard."""
    with verbs.node_of(root, name, node) as (plan, known):
        count = nodes.kill(plan, known, helpers=helpers, hard=hard)
    click.echo(f"{node} killed ({count} processes)")


@lab.command()
@click.option(
    "--timeout", default=verbs.UP_TIMEOUT_S, show_default=True, help="Seconds to wait for it"
)
@click.option(
    "--force-new-cluster",
    is_flag=True,
    help="Let this manager go on as the only one: when the others are lost",
)
@_node_argument
def start(*, node: str, timeout: float, force_new_cluster: bool, name: str, root: str) -> None:
    """Start a node that was killed or went down."""
    extra = ("--force-new-cluster",) if force_new_cluster else ()
    verbs.start(root, name, node, timeout_s=timeout, extra=extra)
    click.echo(f"{node} started")


def _change(
    action: Callable[[LabPlan, NodePlan], None], *, node: str, name: str, root: str
) -> None:
    with verbs.node_of(root, name, node) as (plan, known):
        action(plan, known)


@lab.command()
@_node_argument
def pause(*, node: str, name: str, root: str) -> None:
    """Freeze a node's daemons with SIGSTOP; its containers run on."""
    _change(nodes.pause, node=node, name=name, root=root)
    click.echo(f"{node} paused")


@lab.command()
@_node_argument
def resume(*, node: str, name: str, root: str) -> None:
    """Let a paused node go on."""
    _change(nodes.resume, node=node, name=name, root=root)
    click.echo(f"{node} resumed")


@lab.command()
@_node_argument
def partition(*, node: str, name: str, root: str) -> None:
    """Cut a node off: drop all that comes from or leaves by its uplink."""
    _change(nodes.partition, node=node, name=name, root=root)
    click.echo(f"{node} partitioned")


@lab.command()
@click.argument("node", required=False)
@_lab_options
def heal(*, node: str | None, name: str, root: str) -> None:
    """Mend the uplink of a node, or of all nodes."""
    plan = record.read_lab(root, name).plan
    for each in [node] if node else [known.name for known in plan.everyone]:
        _change(nodes.heal, node=each, name=name, root=root)
    click.echo(f"{node or 'all nodes'} healed")


@lab.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on")
@click.option("-n", "--tail", default=100, show_default=True, type=click.IntRange(0, 100_000))
@_node_argument
def logs(*, node: str, follow: bool, tail: int, name: str, root: str) -> None:
    """Show the log of a node's daemon."""
    plan = record.read_lab(root, name).plan
    log = nodes.paths_of(plan, plan.node(node)).log
    words = ["tail", "-n", str(tail), *(["-F"] if follow else []), "--", log]
    raise click.exceptions.Exit(subprocess.run(words, check=False).returncode)


@lab.command()
@click.argument("node", nargs=-1)
@click.option("--timeout", default=verbs.UP_TIMEOUT_S, show_default=True, help="Seconds to wait")
@_lab_options
def wait(*, node: tuple[str, ...], timeout: float, name: str, root: str) -> None:
    """Wait until the cluster says that these nodes, or all, are ready."""
    verbs.wait(root, name, node, timeout_s=timeout)
