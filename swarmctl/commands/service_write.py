"""service create, update, scale, rollback, rm: changes, and waiting until they took effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.ids import new_id
from shoal.model.objects import Service
from shoal.model.specs import ContainerSpec, PullOptions, ServiceSpec, TaskSpec
from swarmctl import output
from swarmctl.commands.service_flags import REPLICAS, create_flags, update_flags
from swarmctl.commands.service_plan import (
    Prepare,
    check_version_option,
    creation_of,
    plan_options,
    removal_of,
    require_one,
    require_plan,
    show_plan,
)
from swarmctl.complete import complete_services
from swarmctl.each import each, exit_with
from swarmctl.edit.modes import scaled
from swarmctl.edit.service import edit_service
from swarmctl.exits import INTERRUPTED
from swarmctl.options import detach_option, given, quiet_progress_option
from swarmctl.progress.display import make_display
from swarmctl.progress.loop import wait_converged
from swarmctl.registry_auth import registry_auth
from swarmctl.session import Session
from swarmctl.types import Written

if TYPE_CHECKING:
    from shoal.api.v1.control_pb2 import PlannedCall
    from swarmctl.client import Client

Wished = tuple[Service, ServiceSpec | int]
"""A service as it was read, and the spec or revision it is to have; 0: the spec before."""
Wish = Callable[["Client"], Awaitable[Wished]]

PASS_ARGUMENTS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


@click.command("create", context_settings=PASS_ARGUMENTS)
@click.argument("image")
@click.argument("arguments", nargs=-1, metavar="[COMMAND] [ARG...]", type=click.UNPROCESSED)
@create_flags
@plan_options
@detach_option
@quiet_progress_option
@click.pass_obj
def create_service(
    session: Session,
    /,
    image: str,
    arguments: tuple[str, ...],
    *,
    plan: bool,
    template: str,
    detach: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Create a service of containers that run IMAGE."""
    require_plan(template, plan=plan)
    flags = with_auth(flags_of(values) | {"image": image}, image)
    if arguments:
        flags["args"] = arguments
    flags.setdefault("name", f"service-{new_id()[:8]}")
    spec = edit_service(ServiceSpec(task=TaskSpec(runtime=ContainerSpec())), flags)
    if plan:
        show_plan(session, [creation_of(spec)], template)
        return
    _run(
        session,
        [lambda client: client.create_service(spec)],
        shown=lambda written: written.service.id,
        detach=detach,
        quiet=quiet,
    )


@click.command("update")
@click.argument("name", metavar="SERVICE", shell_complete=complete_services)
@update_flags
@click.option("--rollback", is_flag=True, help="Go back to the previous spec")
@click.option(
    "--pause/--resume", default=None, help="Halt the update under way, or let a paused one go on"
)
@plan_options
@check_version_option
@detach_option
@quiet_progress_option
@click.pass_obj
def update_service(
    session: Session,
    /,
    name: str,
    *,
    rollback: bool,
    pause: bool | None,
    plan: bool,
    template: str,
    check_version: int,
    detach: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Change a service; its tasks are replaced as its update flags say."""
    require_plan(template, plan=plan)
    flags = flags_of(values)
    if pause is not None:
        if rollback or plan or flags:
            raise InvalidArgument("--pause and --resume go with no change: leave the others out")
        pausing = _pausing(name, resume=not pause, version=check_version)
        _run(session, [pausing], shown=lambda _: name, detach=detach or pause, quiet=quiet)
        return
    if rollback and flags:
        raise InvalidArgument("--rollback goes with no other change: leave the others out")

    async def wish(client: Client) -> Wished:
        service = (await client.service(name)).service
        runtime = service.spec.task.runtime
        image = runtime.image if isinstance(runtime, ContainerSpec) else ""
        changed = with_auth(await _with_network_ids(client, flags), flags.get("image", image))
        return service, edit_service(service.spec, changed)

    _change(
        session,
        [_earlier(name) if rollback else wish],
        template,
        plan=plan,
        check_version=check_version,
        shown=lambda _: name,
        detach=detach,
        quiet=quiet,
        rollback=rollback,
    )


@click.command("rollback")
@click.argument("name", metavar="SERVICE", shell_complete=complete_services)
@click.option(
    "--to",
    type=click.IntRange(min=1),
    metavar="N",
    help="Go back to this revision, see `service history`",
)
@plan_options
@check_version_option
@detach_option
@quiet_progress_option
@click.pass_obj
def rollback_service(
    session: Session,
    name: str,
    template: str,
    *,
    to: int | None,
    plan: bool,
    check_version: int,
    detach: bool,
    quiet: bool,
) -> None:
    """Go back to the spec a service had before its last change, or to another revision."""
    require_plan(template, plan=plan)
    _change(
        session,
        [_earlier(name, to or 0)],
        template,
        plan=plan,
        check_version=check_version,
        shown=lambda _: name,
        detach=detach,
        quiet=quiet,
        rollback=True,
    )


@click.command("scale")
@click.argument(
    "pairs",
    nargs=-1,
    required=True,
    metavar="SERVICE=REPLICAS...",
    shell_complete=complete_services,
)
@plan_options
@check_version_option
@detach_option
@click.pass_obj
def scale_services(
    session: Session,
    pairs: tuple[str, ...],
    template: str,
    *,
    plan: bool,
    check_version: int,
    detach: bool,
) -> None:
    """Set the number of tasks of services."""
    require_plan(template, plan=plan)
    require_one(pairs, check_version)
    wanted = [_pair(pair) for pair in pairs]
    texts = iter([f"{name} scaled to {replicas}" for name, replicas in wanted])

    def wish(name: str, replicas: int) -> Wish:
        async def scale(client: Client) -> Wished:
            service = (await client.service(name)).service
            return service, service.spec.replaced(mode=scaled(service.spec.mode, replicas, name))

        return scale

    _change(
        session,
        [wish(name, replicas) for name, replicas in wanted],
        template,
        plan=plan,
        check_version=check_version,
        shown=lambda _: next(texts),
        detach=detach,
        quiet=False,
    )


@click.command("rm")
@click.argument(
    "names", nargs=-1, required=True, metavar="SERVICE...", shell_complete=complete_services
)
@plan_options
@check_version_option
@click.pass_obj
def remove_services(
    session: Session, names: tuple[str, ...], template: str, *, plan: bool, check_version: int
) -> None:
    """Remove services and their tasks."""
    require_plan(template, plan=plan)
    require_one(names, check_version)
    if plan:
        show_plan(session, [removal_of(name, check_version) for name in names], template)
        return

    async def work(client: Client) -> None:
        async def remove(name: str) -> None:
            await client.remove_service(name, version=check_version)
            click.echo(name)

        _, errors = await each(names, remove)
        exit_with(errors)

    session.run(work)


def flags_of(values: dict[str, Any]) -> dict[str, Any]:
    """The flags that were given, as `swarmctl.edit` knows them; env files go before --env."""
    flags = given(values)
    files = flags.pop("env_file", ())
    variables = [*(item for file in files for item in file), *flags.pop("env_add", ())]
    if variables:  # an empty one stands for a variable the caller's environment does not have
        flags["env_add"] = tuple(variable for variable in variables if variable)
    return flags


async def _with_network_ids(client: Client, flags: dict[str, Any]) -> dict[str, Any]:
    """The flags with the ids of the networks they name: a spec holds ids."""
    if not flags.keys() & {"network_add", "network_rm"}:
        return flags
    from swarmctl.networks import with_network_ids  # here: it needs the client

    return await with_network_ids(client, flags)


def with_auth(flags: dict[str, Any], image: str) -> dict[str, Any]:
    """The flags with the user's credentials for the image's registry, if they are to be sent."""
    rest = {name: value for name, value in flags.items() if name != "with_registry_auth"}
    if flags.get("with_registry_auth"):
        rest["pull_options"] = PullOptions(registry_auth=registry_auth(image))
    return rest


def _run(
    session: Session,
    changes: list[Callable[[Client], Awaitable[Written]]],
    *,
    shown: Callable[[Written], str],
    detach: bool,
    quiet: bool,
    rollback: bool = False,
) -> None:
    done: list[Written] = []

    async def work(client: Client) -> None:
        for change in changes:
            written = await change(client)
            done.append(written)
            output.warn(written.warnings)
            click.echo(shown(written))
        if not detach:
            for written in done:
                with make_display(quiet=quiet) as display:
                    await wait_converged(client, written.service.id, display, rollback=rollback)

    try:
        session.run(work)
    except KeyboardInterrupt:
        if not done:
            raise
        click.echo(
            "Operation continuing in background.\n"
            f"Use `swarmctl service ps {done[-1].service.id}` to check progress.",
            err=True,
        )
        raise click.exceptions.Exit(INTERRUPTED) from None


def _change(
    session: Session,
    wishes: list[Wish],
    template: str,
    *,
    plan: bool,
    check_version: int,
    shown: Callable[[Written], str],
    detach: bool,
    quiet: bool,
    rollback: bool = False,
) -> None:
    """Fulfil the wishes one after the other, or say what that would do."""

    def write(wish: Wish) -> Callable[[Client], Awaitable[Written]]:
        async def written(client: Client) -> Written:
            service, spec = await wish(client)
            if isinstance(spec, int):
                return await client.rollback_service(service, to=spec, version=check_version)
            return await client.update_service(service, spec, version=check_version)

        return written

    def prepare(wish: Wish) -> Prepare:
        async def prepared(client: Client) -> PlannedCall:
            from swarmctl.plans import change  # here: it needs the client

            return change(*await wish(client), version=check_version)

        return prepared

    if plan:
        show_plan(session, [prepare(wish) for wish in wishes], template)
        return
    changes = [write(wish) for wish in wishes]
    _run(session, changes, shown=shown, detach=detach, quiet=quiet, rollback=rollback)


def _pausing(name: str, *, resume: bool, version: int) -> Callable[[Client], Awaitable[Written]]:
    async def pausing(client: Client) -> Written:
        service = (await client.service(name)).service
        return await client.pause_service_update(service, resume=resume, version=version)

    return pausing


def _earlier(name: str, to: int = 0) -> Wish:
    async def earlier(client: Client) -> Wished:
        service = (await client.service(name)).service
        if not to and service.previous_spec is None:
            raise FailedPrecondition(f"service {name} has no previous spec: it was never updated")
        return service, to

    return earlier


def _pair(text: str) -> tuple[str, int]:
    name, equals, count = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"{text!r}: write SERVICE=REPLICAS, as in web=3")
    return name, int(REPLICAS.convert(count, None, None))
