"""Which daemon a command talks to. Pure: the environment is an argument.

Order: --host, SWARM_HOST, --context, SWARM_CONTEXT, the current context, the local socket. A TCP
host needs a client certificate; without one the choice is refused before anything is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from shoal.errors import InvalidArgument, NotFound
from swarmctl.contexts import DEFAULT_CONTEXT, Contexts

DEFAULT_PORT = 2377


class Choice(msgspec.Struct, frozen=True):
    """What the user said on the command line; empty means nothing."""

    host: str = ""
    context: str = ""
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""


class Target(msgspec.Struct, frozen=True):
    """A daemon: a unix socket, or host:port with the files of a client certificate.

    others: daemons of the same cluster that serve when this one does not.
    """

    host: str
    socket: Path | None = None
    address: str = ""
    tls_ca: str = ""
    tls_certificate: str = ""
    tls_key: str = ""
    context: str = ""
    nodes: dict[str, str] = {}
    others: tuple[Target, ...] = ()

    def node(self, name: str, choice: Choice) -> Target:
        """The daemon of one node of the context. Raises NotFound."""
        if name not in self.nodes:
            known = ", ".join(sorted(self.nodes)) or "none: the context lists no nodes"
            raise NotFound(f"--node {name!r} is not in context {self.context!r}: it has {known}")
        return parse_host(self.nodes[name], choice)


def choose(choice: Choice, environ: Mapping[str, str], contexts: Contexts) -> Target:
    """The daemon for this command. Raises NotFound for a context, InvalidArgument for a host."""
    host = choice.host or (environ.get("SWARM_HOST", "") if not choice.context else "")
    if choice.host and choice.context:
        raise InvalidArgument("--host and --context exclude each other: give one of them")
    if host:
        return parse_host(host, choice)
    name = choice_of_context(choice, environ, contexts)
    context = contexts.get(name)
    target = parse_host(context.host, choice)
    others = tuple(
        msgspec.structs.replace(parse_host(one, choice), context=name, nodes=context.nodes)
        for one in context.others
    )
    return msgspec.structs.replace(target, context=name, nodes=context.nodes, others=others)


def choice_of_context(choice: Choice, environ: Mapping[str, str], contexts: Contexts) -> str:
    """Name of the context in force when no host is given."""
    return choice.context or environ.get("SWARM_CONTEXT", "") or contexts.current or DEFAULT_CONTEXT


def parse_host(host: str, choice: Choice) -> Target:
    """The daemon at `unix:///path` or `tcp://host[:port]`. Raises InvalidArgument."""
    scheme, separator, rest = host.partition("://")
    if separator and scheme == "unix" and rest.startswith("/"):
        return Target(host=host, socket=Path(rest))
    if not separator or scheme != "tcp" or not rest:
        raise InvalidArgument(
            f"host {host!r}: write unix:///path/to/swarmd.sock or tcp://host:{DEFAULT_PORT}"
        )
    if not (choice.tls_ca and choice.tls_certificate and choice.tls_key):
        raise InvalidArgument(
            f"host {host!r}: TCP needs a client certificate: give --tlscacert, --tlscert "
            "and --tlskey"
        )
    return Target(
        host=host,
        address=_with_port(rest.rstrip("/")),
        tls_ca=choice.tls_ca,
        tls_certificate=choice.tls_certificate,
        tls_key=choice.tls_key,
    )


def _with_port(address: str) -> str:
    bare_ipv6 = address.count(":") > 1 and not address.startswith("[")
    if bare_ipv6:
        return f"[{address}]:{DEFAULT_PORT}"
    has_port = ":" in address.rpartition("]")[2]
    return address if has_port else f"{address}:{DEFAULT_PORT}"
