"""Entry of `shoal-rafttool`: look into the raft directory of a manager that is not running."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from manager.inspect.dump import Dump, Options, dump_objects, dump_snapshot, dump_wal
from manager.inspect.text import to_json, to_text
from manager.storage.reading import read_member
from shoal.errors import InvalidArgument, SwarmError
from shoal.security.unlock import UnlockKey, WrappingKey, parse_unlock_key
from shoal.settings.lock import read_lock_file
from shoal.settings.paths import NodePaths

_UNLOCK_FILE_BYTES_MAX = 4096
_COMMANDS: dict[str, tuple[Dump, str]] = {
    "dump-wal": (dump_wal, "every record of the log"),
    "dump-snapshot": (dump_snapshot, "the newest snapshot and its objects"),
    "dump-objects": (dump_objects, "the objects as a manager would load them"),
}


def main() -> None:
    """Parse the arguments, print, and exit with 1 on any failure."""
    try:
        run(sys.argv[1:], sys.stdout)
        sys.stdout.flush()
    except SwarmError as error:
        sys.stderr.write(f"shoal-rafttool: {error.message}\n")
        sys.exit(1)
    except BrokenPipeError:
        # Whoever read had enough (`| head`); the interpreter must not write to the pipe again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(arguments: Sequence[str], out: TextIO) -> None:
    """Run one command. Raises: SwarmError; SystemExit for a wrong command line."""
    options = _parser().parse_args(arguments)
    render = to_json if options.format == "json" else to_text
    dump, _ = _COMMANDS[options.command]
    shown = Options(
        show_secrets=options.show_secrets, uncommitted=getattr(options, "uncommitted", False)
    )
    paths = NodePaths(state=options.state_dir, run=options.state_dir)
    keys = _keys(paths, _unlock_key(options.unlock_key_file))
    with read_member(paths.raft, former=keys) as member:
        for document in dump(member, shown):
            out.write(render(document) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="shoal-rafttool", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (_, purpose) in _COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.add_argument("--state-dir", type=Path, required=True, help="of the stopped node")
        command.add_argument("--unlock-key-file", type=Path, help="holds the SWMKEY-1-... key")
        command.add_argument("--format", choices=("text", "json"), default="text")
        command.add_argument(
            "--show-secrets", action="store_true", help="private keys, tokens and secrets too"
        )
        if name == "dump-objects":
            command.add_argument(
                "--uncommitted",
                action="store_true",
                help="apply entries that are not known to be committed, too",
            )
    return parser


def _keys(paths: NodePaths, unlock_key: UnlockKey | None) -> list[WrappingKey]:
    """What may open the data keys: the node's lock keys, or the unlock key itself."""
    keys: list[WrappingKey] = [] if unlock_key is None else [unlock_key]
    lock = read_lock_file(paths.lock)
    if lock is not None:
        keys += lock.open(unlock_key).keys
    return keys


def _unlock_key(path: Path | None) -> UnlockKey | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            text = file.read(_UNLOCK_FILE_BYTES_MAX).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"--unlock-key-file {path}: {error}") from error
    return parse_unlock_key(text)


if __name__ == "__main__":
    main()
