"""Contexts: names for clusters, kept in `contexts.json`.

The file is `$SHOAL_CONFIG_DIR/contexts.json`, else `~/.config/shoal/contexts.json`. It is replaced
as a whole by rename, so a reader never sees half of it; a file that does not parse is refused and
never overwritten.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import msgspec

from shoal.errors import FailedPrecondition, InvalidArgument, NotFound

DEFAULT_CONTEXT = "default"
DEFAULT_HOST = "unix:///run/shoal/swarmd.sock"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,127}")


class Context(msgspec.Struct, frozen=True):
    """A cluster: the host to talk to, and the socket of each node where all are known (a lab).

    others: hosts to try in order when `host` does not answer, or is no manager any more.
    """

    host: str
    others: tuple[str, ...] = ()
    nodes: dict[str, str] = {}
    description: str = ""


class Contexts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the file holds."""

    current: str = ""
    contexts: dict[str, Context] = {}

    def get(self, name: str) -> Context:
        """The context of that name. Raises NotFound."""
        if name in self.contexts:
            return self.contexts[name]
        if name == DEFAULT_CONTEXT:
            return Context(host=DEFAULT_HOST, description="the daemon of this machine")
        raise NotFound(f"context {name!r} does not exist: `swarmctl context ls` lists them")


def config_dir() -> Path:
    """Directory of the user's settings."""
    override = os.environ.get("SHOAL_CONFIG_DIR")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "shoal"


def load() -> Contexts:
    """What the file holds; empty when there is none. Raises FailedPrecondition if it is broken."""
    path = config_dir() / "contexts.json"
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        raise FailedPrecondition(f"{path} cannot be read: {error.strerror}") from error
    try:
        return msgspec.json.decode(content, type=Contexts)
    except msgspec.DecodeError as error:
        raise FailedPrecondition(f"{path} is broken ({error}): repair or remove it") from error


def save_context(name: str, context: Context) -> None:
    """Create or replace a context."""
    if not _NAME.fullmatch(name) or name == DEFAULT_CONTEXT:
        raise InvalidArgument(
            f"context name {name!r} is not allowed: use letters, digits and _.+-, "
            f"and another word than {DEFAULT_CONTEXT!r}"
        )
    stored = load()
    _write(Contexts(current=stored.current, contexts={**stored.contexts, name: context}))


def use(name: str) -> None:
    """Make a context the current one. Raises NotFound."""
    stored = load()
    stored.get(name)
    _write(Contexts(current=name, contexts=stored.contexts))


def remove(name: str) -> None:
    """Forget a context; the current one falls back to the default. Raises NotFound."""
    stored = load()
    if name not in stored.contexts:
        raise NotFound(f"context {name!r} does not exist: `swarmctl context ls` lists them")
    rest = {other: value for other, value in stored.contexts.items() if other != name}
    _write(Contexts(current="" if stored.current == name else stored.current, contexts=rest))


def _write(contexts: Contexts) -> None:
    directory = config_dir()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = msgspec.json.format(msgspec.json.encode(contexts), indent=2)
        with tempfile.NamedTemporaryFile(
            dir=directory, prefix="contexts.", suffix=".tmp", delete=False
        ) as file:
            try:
                file.write(content + b"\n")
                file.flush()
                os.fsync(file.fileno())
                Path(file.name).replace(directory / "contexts.json")
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
    except OSError as error:
        raise FailedPrecondition(
            f"{directory / 'contexts.json'} cannot be written: {error.strerror}"
        ) from error
