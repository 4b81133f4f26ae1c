"""service create, update, scale, rollback, rm: changes, and waiting until they took effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.ids import new_id
from shoal.model.specs import ContainerSpec, PullOptions, ServiceSpec, TaskSpec
from swarmctl import output
from swarmctl.commands.service_flags import REPLICAS, create_flags, update_flags
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
    from swarmctl.client import Client

Change = Callable[["Client", str], Awaitable[Written]]

PASS_ARGUMENTS = {"ignore_unknown_options": False, "allow_interspersed_args": False}


@click.command("create", context_settings=PASS_ARGUMENTS)
@click.argument("image")
@click.argument("arguments", nargs=-1, metavar="[COMMAND] [ARG...]", type=click.UNPROCESSED)
@create_flags
@detach_option
@quiet_progress_option
@click.pass_obj
def create_service(
    session: Session,
    /,
    image: str,
    arguments: tuple[str, ...],
    *,
    detach: bool,
    quiet: bool,
    **values: Any,
) -> None:
    """Create a service of containers that run IMAGE."""
    flags = with_auth(flags_of(values) | {"image": image}, image)
    if arguments:
        flags["args"] = arguments
    flags.setdefault("name", f"service-{new_id()[:8]}")
    spec = edit_service(ServiceSpec(task=TaskSpec(runtime=ContainerSpec())), flags)
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
@detach_option
@quiet_progress_option
@click.pass_obj
def update_service(
    session: Session, /, name: str, *, rollback: bool, detach: bool, quiet: bool, **values: Any
) -> None:
    """Change a service; its tasks are replaced as its update flags say."""
    flags = flags_of(values)
    if rollback and flags:
        raise InvalidArgument("--rollback goes with no other change: leave the others out")

    async def change(client: Client) -> Written:
        if rollback:
            return await _roll_back(client, name)
        service = (await client.service(name)).service
        runtime = service.spec.task.runtime
        image = runtime.image if isinstance(runtime, ContainerSpec) else ""
        changed = with_auth(await _with_network_ids(client, flags), flags.get("image", image))
        return await client.update_service(service, edit_service(service.spec, changed))

    _run(session, [change], shown=lambda _: name, detach=detach, quiet=quiet, rollback=rollback)


@click.command("rollback")
@click.argument("name", metavar="SERVICE", shell_complete=complete_services)
@detach_option
@quiet_progress_option
@click.pass_obj
def rollback_service(session: Session, name: str, *, detach: bool, quiet: bool) -> None:
    """Go back to the spec a service had before its last change."""
    _run(
        session,
        [lambda client: _roll_back(client, name)],
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
@detach_option
@click.pass_obj
def scale_services(session: Session, pairs: tuple[str, ...], *, detach: bool) -> None:
    """Set the number of tasks of services."""
    wanted = [_pair(pair) for pair in pairs]

    def change(name: str, replicas: int) -> Callable[[Client], Awaitable[Written]]:
        async def scale(client: Client) -> Written:
            service = (await client.service(name)).service
            mode = scaled(service.spec.mode, replicas, name)
            written = await client.update_service(service, service.spec.replaced(mode=mode))
            click.echo(f"{name} scaled to {replicas}")
            return written

        return scale

    changes = [change(name, replicas) for name, replicas in wanted]
    _run(session, changes, shown=None, detach=detach, quiet=False)


@click.command("rm")
@click.argument(
    "names", nargs=-1, required=True, metavar="SERVICE...", shell_complete=complete_services
)
@click.pass_obj
def remove_services(session: Session, names: tuple[str, ...]) -> None:
    """Remove services and their tasks."""

    async def work(client: Client) -> None:
        async def remove(name: str) -> None:
            await client.remove_service(name)
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
    shown: Callable[[Written], str] | None,
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
            if shown is not None:
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


async def _roll_back(client: Client, name: str) -> Written:
    service = (await client.service(name)).service
    if service.previous_spec is None:
        raise FailedPrecondition(f"service {name} has no previous spec: it was never updated")
    return await client.rollback_service(service)


def _pair(text: str) -> tuple[str, int]:
    name, equals, count = text.partition("=")
    if not name or not equals:
        raise InvalidArgument(f"{text!r}: write SERVICE=REPLICAS, as in web=3")
    return name, int(REPLICAS.convert(count, None, None))
