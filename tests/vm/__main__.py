"""`python -m tests.vm [OPTIONS] COMMAND...`: a command in a virtual machine of its own; root.

The machine has this one's root (changes are lost), a copy of the checkout at the same place,
control groups of version 2 alone with every controller, and loopback for a network. Output and
exit code are the command's; what it leaves in /run/vm/results goes to --results. 124: it took too
long. 125: there was no machine, and why.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from tests.vm.kernel import FLAVOURS, Unavailable, cache_directory, obtain
from tests.vm.machine import Settings, accelerator, run, why_not

CHECKOUT = Path(__file__).resolve().parents[2]
NO_MACHINE = 125
PRIVATE = "SHOAL_VM_PRIVATE"


def main() -> int:
    arguments = _arguments()
    if missing := why_not():
        print(f"vm: {missing}", file=sys.stderr)
        return NO_MACHINE
    if PRIVATE not in os.environ:
        words = ["unshare", "--mount", "--propagation", "private", sys.executable, "-P"]
        os.environ[PRIVATE] = "1"
        os.execvp(words[0], [*words, "-m", "tests.vm", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        kernel = obtain(arguments.cache, arguments.kernel)
        settings = Settings(
            kernel=kernel,
            accelerator=accelerator(arguments.accel, kernel, arguments.cache),
            checkout=CHECKOUT,
            python=os.path.realpath(sys.executable),
            memory_mib=arguments.memory,
            append=arguments.append,
            revision=arguments.revision,
            timeout_s=arguments.timeout,
            environment=dict(one.split("=", 1) for one in arguments.env),
            results=arguments.results,
        )
        return run(settings, arguments.command)
    except Unavailable as error:
        print(f"vm: {error}", file=sys.stderr)
        return NO_MACHINE


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.vm", description=__doc__)
    parser.add_argument("--append", default="", help="more words for the kernel's command line")
    parser.add_argument("--revision", default="", help="a commit instead of the files as they are")
    parser.add_argument("--accel", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument("--kernel", choices=sorted(FLAVOURS), default="cloud")
    parser.add_argument("--memory", type=int, default=4096, metavar="MIB")
    parser.add_argument("--timeout", type=float, default=3600.0, metavar="SECONDS")
    parser.add_argument("--cache", type=Path, default=cache_directory(), metavar="DIRECTORY")
    parser.add_argument("--results", type=Path, metavar="DIRECTORY")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    if not arguments.command:
        parser.error("which command?")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
