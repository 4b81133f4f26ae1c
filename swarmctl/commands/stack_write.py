"""stack deploy, rollback, rm: changes, and waiting until they took effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from shoal.docker.values import Record
from shoal.errors import InvalidArgument, NotFound
from swarmctl import output
from swarmctl.commands.service_plan import plan_options, require_plan
from swarmctl.complete import complete_stacks
from swarmctl.each import each, exit_with
from swarmctl.exits import FAILURE, INTERRUPTED, NO_CHANGE
from swarmctl.options import quiet_progress_option
from swarmctl.progress.display import make_display
from swarmctl.progress.loop import wait_converged
from swarmctl.session import Session

if TYPE_CHECKING:
    from shoal.api.v1.stacks_pb2 import DeployStackResponse
    from shoal.model.specs import ServiceSpec, StackSpec
    from swarmctl.client import Client

compose_option = click.option(
    "-c",
    "--compose-file",
    "files",
    multiple=True,
    type=click.Path(),
    metavar="FILE",
    help="Compose file, - for standard input; later ones lie over earlier ones",
)
detach_option = click.option(
    "-d", "--detach", is_flag=True, help="Do not wait for the services to converge"
)


@click.command("deploy")
@click.argument("name", metavar="STACK", shell_complete=complete_stacks)
@compose_option
@click.option("--prune", is_flag=True, help="Remove services that the files do not name any more")
@click.option(
    "--with-registry-auth", is_flag=True, help="Send your registry credentials to the nodes"
)
@click.option(
    "--resolve-image",
    type=click.Choice(["always", "changed", "never"]),
    default="always",
    help="Ask registries what images stand for, and pin them to that (default always)",
)
@click.option(
    "--check-version",
    type=click.IntRange(min=1),
    default=None,
    metavar="REVISION",
    help="Refuse when the stack has another revision by now",
)
@plan_options
@detach_option
@quiet_progress_option
@click.pass_obj
def deploy(
    session: Session,
    /,
    name: str,
    *,
    plan: bool,
    template: str,
    detach: bool,
    quiet: bool,
    **flags: Any,
) -> None:
    """Make the cluster hold what Compose files say.

    Everything is one change, and one revision: `stack history` lists them, `stack rollback` goes
    back. Services begin in the order of their depends_on. Deployed again, nothing changes.
    """
    require_plan(template, plan=plan)
    project_warnings, spec = _spec(name, flags)
    for text in project_warnings:
        click.echo(f"{text}\n", err=True)
    if plan:
        _plan(session, name, spec, flags, template)
        return

    async def change(client: Client) -> DeployStackResponse:
        from swarmctl.stacks import deploy_stack

        version = await _version(client, name, flags["check_version"])
        pinned = await _pinned(client, spec, flags["resolve_image"])
        return await deploy_stack(client, pinned, prune=flags["prune"], version=version)

    _run(session, change, detach=detach, quiet=quiet)


@click.command("rollback")
@click.argument("name", metavar="STACK", shell_complete=complete_stacks)
@click.option(
    "--to", "revision", type=click.IntRange(min=1), default=None,
    help="Revision (default: the one before the newest)",
)  # fmt: skip
@detach_option
@quiet_progress_option
@click.pass_obj
def rollback(
    session: Session, name: str, revision: int | None, *, detach: bool, quiet: bool
) -> None:
    """Deploy what the stack was at an earlier revision.

    Services that came later are removed; secrets and configs have their contents of that time.
    """

    async def change(client: Client) -> DeployStackResponse:
        from swarmctl.stacks import roll_back_stack

        return await roll_back_stack(client, name, revision or 0)

    _run(session, change, detach=detach, quiet=quiet)


@click.command("rm")
@click.argument(
    "names", nargs=-1, required=True, metavar="STACK...", shell_complete=complete_stacks
)
@click.pass_obj
def remove(session: Session, names: tuple[str, ...]) -> None:
    """Remove stacks: services, secrets, configs and networks. Volumes stay."""

    async def work(client: Client) -> None:
        from swarmctl.render.stacks import change_lines
        from swarmctl.stacks import remove_stack

        async def one(name: str) -> None:
            try:
                changes = await remove_stack(client, name)
            except NotFound:  # to docker no error either
                click.echo(f"Nothing found in stack: {name}", err=True)
                return
            for line in change_lines(changes):
                click.echo(line)

        _, errors = await each(names, one)
        exit_with(errors)

    session.run(work)


def _spec(name: str, flags: dict[str, Any]) -> tuple[Sequence[str], StackSpec]:
    from swarmctl.compose.project import project_spec  # here: YAML and the schema are heavy
    from swarmctl.compose_files import Disk, read_project

    project = read_project(flags["files"])
    spec = project_spec(project, name, Disk())
    if flags["with_registry_auth"]:
        spec = spec.replaced(services=tuple(map(_with_auth, spec.services)))
    return project.warnings, spec


def _with_auth(service: ServiceSpec) -> ServiceSpec:
    from shoal.model.specs import ContainerSpec, PullOptions
    from swarmctl.registry_auth import registry_auth

    container = service.task.runtime
    if not isinstance(container, ContainerSpec):
        return service
    options = PullOptions(registry_auth=registry_auth(container.image))
    runtime = container.replaced(pull_options=options)
    return service.replaced(task=service.task.replaced(runtime=runtime))


def _plan(
    session: Session, name: str, spec: StackSpec, flags: dict[str, Any], template: str
) -> None:
    """Print what the deployment would do. Exit codes as those of services' plans."""

    async def work(client: Client) -> None:
        from swarmctl import plans
        from swarmctl.render.plans import NOTHING, plan_text
        from swarmctl.render.stacks import change_lines, changes_json
        from swarmctl.stacks import plan_stack

        version = await _version(client, name, flags["check_version"])
        pinned = await _pinned(client, spec, flags["resolve_image"])
        answer = await plan_stack(client, pinned, prune=flags["prune"], version=version)
        deployment, plan = answer.deployment, answer.plan
        for one in plan.services:
            one.version = 0  # that of the stack counts
        output.warn(deployment.warnings)
        if template:
            shown = Record({**changes_json(deployment), "Plan": plans.plan_json(plan)})
            output.write(output.objects_text([shown], template))
        elif deployment.revision:
            click.echo("\n".join([*change_lines(deployment.changes), ""]))
            output.write(plan_text(plan))
        else:
            click.echo(NOTHING)
        exit_with(plans.refusals(plan))
        if not deployment.revision:
            raise click.exceptions.Exit(NO_CHANGE)
        if plans.would_fail(plan):
            raise click.exceptions.Exit(FAILURE)

    session.run(work)


async def _pinned(client: Client, spec: StackSpec, when: str) -> StackSpec:
    """The stack with its images pinned to digests, as far as registries can be asked."""
    if when == "never":
        return spec
    from swarmctl.resolving import resolved  # here: it needs the client

    pinned, warnings = await resolved(client, spec, only_changed=when == "changed")
    for text in warnings:
        click.echo(f"{text}\n", err=True)
    return pinned


async def _version(client: Client, name: str, revision: int | None) -> int:
    """The version of the stack's newest revision, if that is the one that was asked for."""
    if revision is None:
        return 0
    from swarmctl.stacks import get_stack

    newest = await get_stack(client, name, 0)
    if newest.revision != revision:
        raise InvalidArgument(
            f"stack {name} is at revision {newest.revision}, not {revision}: look at what changed"
            " (`swarmctl stack history`)"
        )
    return newest.meta.version.index


def _run(
    session: Session,
    change: Callable[[Client], Awaitable[DeployStackResponse]],
    *,
    detach: bool,
    quiet: bool,
) -> None:
    done: list[DeployStackResponse] = []

    async def work(client: Client) -> None:
        from swarmctl.render.stacks import change_lines

        answer = await change(client)
        done.append(answer)
        output.warn(answer.warnings)
        for line in change_lines(answer.changes):
            click.echo(line)
        if not answer.revision:
            click.echo(f"Stack {answer.stack} is as it is wished: nothing was changed")
        if not detach:
            for service_id in answer.service_ids:
                with make_display(quiet=quiet) as display:
                    await wait_converged(client, service_id, display)

    try:
        session.run(work)
    except KeyboardInterrupt:
        if not done:
            raise
        click.echo(
            "Operation continuing in background.\n"
            f"Use `swarmctl stack ps {done[-1].stack}` to check progress.",
            err=True,
        )
        raise click.exceptions.Exit(INTERRUPTED) from None
