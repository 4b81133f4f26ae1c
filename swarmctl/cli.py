"""The root command: global flags, the table of commands, and errors to exit codes."""

from __future__ import annotations

from typing import Any

import click
from typing_extensions import override

from shoal.errors import SwarmError
from swarmctl import VERSION, exits
from swarmctl.lazy import Lazy, LazyGroup
from swarmctl.session import Session, choice_of

MEMBERS = {
    "ca": Lazy("swarmctl.commands.ca:ca", "Show or replace the root certificate"),
    "cluster": Lazy(
        "swarmctl.commands.settings:cluster", "Settings, backup and leadership of the cluster"
    ),
    "completion": Lazy("swarmctl.commands.completion:completion", "Print a completion script"),
    "config": Lazy("swarmctl.commands.files:config", "Files for tasks that need no secrecy"),
    "context": Lazy("swarmctl.commands.context:context", "Name clusters and choose one"),
    "events": Lazy("swarmctl.commands.events:events", "What happens in the cluster, as it happens"),
    "image": Lazy("swarmctl.commands.image:image", "Images of a node or of all nodes"),
    "info": Lazy("swarmctl.commands.cluster:info", "Show the node and its cluster"),
    "init": Lazy("swarmctl.commands.cluster:init", "Make a new cluster of this node"),
    "join": Lazy("swarmctl.commands.cluster:join", "Let this node join a cluster"),
    "join-token": Lazy(
        "swarmctl.commands.tokens:join_token", "Show, rotate, make and remove join tokens"
    ),
    "lab": Lazy("swarmctl.lab.commands:lab", "A whole cluster on this machine"),
    "leave": Lazy("swarmctl.commands.cluster:leave", "Let this node leave its cluster"),
    "network": Lazy("swarmctl.commands.network:network", "Overlay networks of the cluster"),
    "node": Lazy("swarmctl.commands.node:node", "Nodes of the cluster"),
    "secret": Lazy("swarmctl.commands.files:secret", "Secret files for tasks"),
    "service": Lazy("swarmctl.commands.service:service", "Services of the cluster"),
    "stack": Lazy("swarmctl.commands.stack:stack", "Services of Compose files, as one"),
    "task": Lazy("swarmctl.commands.task:task", "Tasks of the cluster"),
    "unlock": Lazy("swarmctl.commands.locking:unlock", "Unlock this node's manager"),
    "unlock-key": Lazy(
        "swarmctl.commands.locking:unlock_key", "Show or rotate the key that unlocks managers"
    ),
    "version": Lazy("swarmctl.commands.cluster:version", "Show versions"),
}


class RootGroup(LazyGroup):
    """Turns an error of the family into a message on stderr and an exit code."""

    @override
    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except SwarmError as error:
            raise exits.failure_of(error) from error
        except KeyboardInterrupt:
            click.echo(err=True)
            raise click.exceptions.Exit(exits.INTERRUPTED) from None
        except BrokenPipeError:  # the reader (`| head`) has seen enough
            raise click.exceptions.Exit(exits.FAILURE) from None


@click.group(
    cls=RootGroup,
    members=MEMBERS,
    epilog=exits.epilog(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("-H", "--host", default="", metavar="HOST", help="Daemon: unix:// or tcp:// address")
@click.option("-c", "--context", default="", metavar="NAME", help="Cluster, by its context")
@click.option("--tlscacert", default="", metavar="FILE", help="Root certificate, for tcp://")
@click.option("--tlscert", default="", metavar="FILE", help="Client certificate, for tcp://")
@click.option("--tlskey", default="", metavar="FILE", help="Key of the client certificate")
@click.version_option(VERSION, "-v", "--version", message="swarmctl version %(version)s")
@click.pass_context
def cli(ctx: click.Context, /, **flags: str) -> None:
    """Run containers on many machines as if they were one.

    The daemon is chosen by --host, SWARM_HOST, --context, SWARM_CONTEXT, the current context
    (`swarmctl context use`), and else is the one of this machine.
    """
    ctx.obj = Session(choice_of(flags))
