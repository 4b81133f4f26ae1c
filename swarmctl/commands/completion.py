"""Completion scripts for bash, zsh and fish; click makes them, the shell calls us back."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from swarmctl.cli import cli

PROGRAM = "swarmctl"
VARIABLE = "_SWARMCTL_COMPLETE"


@click.command(short_help="Print a completion script")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    r"""Print the completion script of a shell.

    \b
    bash:  source <(swarmctl completion bash)
    zsh:   source <(swarmctl completion zsh)
    fish:  swarmctl completion fish | source
    """
    script = get_completion_class(shell)
    if script is None:
        raise click.ClickException(f"{shell} is not supported")
    click.echo(script(cli, {}, PROGRAM, VARIABLE).source())
