"""Every flag of `docker run`: is it honoured, by whom, or why is it refused.

`python -m tests.integration.engine.flags.table` writes the table of `docs/run-flags.md`; the checks
are in `test_every_flag`, one for each flag.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

PAGE = Path(__file__).parents[4] / "docs/run-flags.md"
_BEGIN = "<!-- the table -->\n"
HONOURED = "honoured"
KERNEL = "honoured where the kernel can"
REFUSED = "refused"
CLIENT = "the client's own"

_PLAIN = """
add-host annotation attach cap-add cap-drop cgroup-parent cgroupns cpu-period cpu-quota cpu-shares
cpus cpuset-cpus cpuset-mems detach-keys device-cgroup-rule device-read-bps device-read-iops
device-write-bps device-write-iops dns dns-option dns-search domainname entrypoint env expose
group-add health-cmd health-interval health-retries health-start-interval health-start-period
health-timeout hostname interactive ip ip6 ipc label link-local-ip mac-address memory
memory-reservation memory-swap name network-alias no-healthcheck oom-score-adj pid pids-limit
privileged publish-all read-only restart shm-size stop-signal stop-timeout sysctl tmpfs tty ulimit
user uts volume volumes-from workdir
"""
_WORDS: dict[str, tuple[str, str]] = {
    "blkio-weight": (KERNEL, "needs a weight in the block controller; refused by name without"),
    "blkio-weight-device": (KERNEL, "as `--blkio-weight`"),
    "cidfile": (CLIENT, "written by the command line"),
    "cpu-count": (REFUSED, "of Windows: by the client, and by the engine as `CpuCount`"),
    "cpu-percent": (REFUSED, "of Windows: by the client, and by the engine as `CpuPercent`"),
    "cpu-rt-period": (KERNEL, "needs cgroup v1 with real-time groups"),
    "cpu-rt-runtime": (
        KERNEL, "as `--cpu-rt-period`, and real time in the group above, which the refusal shows"
    ),
    "detach": (CLIENT, "the command line does not attach"),
    "device": (HONOURED, "directories as well; CDI names are refused"),
    "disable-content-trust": (CLIENT, "`=false` makes the command line ask a notary"),
    "env-file": (CLIENT, "read by the command line, then as `--env`"),
    "gpus": (REFUSED, "no device driver of this kind is known to the engine"),
    "init": (HONOURED, "needs a static init program on the node (`tini`); refused without"),
    "io-maxbandwidth": (REFUSED, "of Windows: by the client, and as `IOMaximumBandwidth`"),
    "io-maxiops": (REFUSED, "of Windows: by the client, and as `IOMaximumIOps`"),
    "isolation": (REFUSED, "but for `default`: the others are of Windows"),
    "kernel-memory": (
        REFUSED, "the kernel has given the limit up; the client sends it below API 1.42 only"
    ),
    "label-file": (CLIENT, "read by the command line, then as `--label`"),
    "link": (HONOURED, "names and, on the default bridge, variables"),
    "log-driver": (HONOURED, "`json-file`, `local`, `none`, `syslog`, `journald`; others refused"),
    "log-opt": (HONOURED, "unknown options are refused; `max-size` is 4 KiB at least"),
    "memory-swappiness": (KERNEL, "cgroup v2 has none: refused there"),
    "mount": (HONOURED, "`bind`, `volume`, `tmpfs`; other types are refused by name"),
    "network": (
        HONOURED, "also several, `gw-priority`, `host`, `none`, `container:`; no `driver-opt`s"
    ),
    "oom-kill-disable": (KERNEL, "cgroup v2 has none: refused there"),
    "platform": (HONOURED, "an image of another platform is pulled, or refused"),
    "publish": (HONOURED, "with addresses and ranges"),
    "pull": (CLIENT, "the command line pulls before it creates"),
    "quiet": (CLIENT, "the command line shows no progress"),
    "rm": (HONOURED, "by the engine, with anonymous volumes"),
    "runtime": (HONOURED, "`native`, and `crun` and `runc` where they are installed"),
    "security-opt": (
        HONOURED,
        "`no-new-privileges`, `seccomp`, `apparmor` and `label` where the kernel has them, "
        "`systempaths`; others are refused",
    ),
    "sig-proxy": (CLIENT, "the command line passes its signals to `kill`"),
    "storage-opt": (REFUSED, "overlay file systems have no size of their own here"),
    "use-api-socket": (HONOURED, "the client asks for a bind of the engine's socket"),
    "userns": (
        HONOURED,
        "`host`: the node's ids where `swarmd --userns-remap` maps them; anything else is refused"
        " by the client",
    ),
    "volume-driver": (HONOURED, "`local`; others are refused"),
}  # fmt: skip
VERDICTS = {f"--{name}": (HONOURED, "") for name in _PLAIN.split()}
VERDICTS |= {f"--{name}": words for name, words in _WORDS.items()}


def flags_of(docker: str, *command: str) -> set[str]:
    """What a command of the docker command line takes, by its own help."""
    text = subprocess.run(
        [docker, *command, "--help"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    found = re.findall(r"^ +(?:-\w, )?(--[a-z0-9-]+)\b", text, re.MULTILINE)
    return set(found) - {"--help"}


def page() -> str:
    """The page with its table as it should be."""
    head, _, _ = PAGE.read_text().partition(_BEGIN)
    rows = [f"| `{flag}` | {verdict} | {words} |" for flag, (verdict, words) in _sorted()]
    return head + _BEGIN + "\n".join(["| flag | | |", "|---|---|---|", *rows]) + "\n"


def _sorted() -> list[tuple[str, tuple[str, str]]]:
    return sorted(VERDICTS.items())


if __name__ == "__main__":
    PAGE.write_text(page())
