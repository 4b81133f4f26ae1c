"""The AppArmor profile of containers that ask for none: its text, and who runs under it. Pure.

Invariant: a process under it changes nothing of the kernel that is not its container's, whatever
capabilities it has: it mounts nothing, writes to `/proc` and `/sys` only what belongs to a process
or a control group, and signals and traces nobody outside of the profile. It
stands for what the read-only and masked paths and the seccomp filter keep, too: one may be lifted
without the other. Needs no file of the node's policy, so it is the same on every distribution.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from worker.runtime.api import ContainerConfig

DEFAULT = "shoal-default"
DOCKERS_DEFAULT = "docker-default"
"""What people write for "the default": it stands for ours, which is at least as strict."""
UNCONFINED = "unconfined"
_WRITTEN_IN_SYS = "fs/cgroup"
_HIDDEN = (
    "/proc/{kcore,sysrq-trigger}", "/sys/firmware/**", "/sys/kernel/security/**",
    "/sys/devices/virtual/powercap/**",
)  # fmt: skip
_SPECIAL = re.compile(r'[]\[{}*?^,"\\]')
_RUNTIMES = ("crun", "runc")
"""Installed runtimes: some distributions have profiles of these names for them."""


def profile_of(config: ContainerConfig) -> str:
    """The profile a container runs under, on a node that has AppArmor."""
    asked = config.apparmor_profile
    if not asked:
        return UNCONFINED if config.privileged else DEFAULT
    return DEFAULT if asked == DOCKERS_DEFAULT else asked


def text_of(own: str, name: str = DEFAULT) -> str:
    """The profile as `apparmor_parser` reads it. own: what the runtime itself runs under."""
    senders = dict.fromkeys(_SPECIAL.sub(r"\\\g<0>", one) for one in (UNCONFINED, own, *_RUNTIMES))
    rules = [
        "network", "capability", "file", "umount",
        *(f'signal (receive) peer="{sender}"' for sender in senders),
        f"signal (send, receive) peer={name}",
        "signal (send, receive) set=(exists)",
        f"ptrace (trace, read) peer={name}",
        "ptrace (tracedby, readby)",
        "deny mount",
        "deny /proc/[^0-9]** w",
        *(f"deny {place} wklx" for place in _all_but("/sys/", _WRITTEN_IN_SYS)),
        *(f"deny {place} rwklx" for place in _HIDDEN),
    ]  # fmt: skip
    body = "".join(f"  {rule},\n" for rule in rules)
    return f"profile {name} flags=(attach_disconnected, mediate_deleted) {{\n{body}}}\n"


def _all_but(directory: str, kept: str) -> Iterator[str]:
    """Patterns for all below a directory that does not begin with `kept`.

    One for each place where a name can depart from it: a pattern cannot say "not".
    """
    for index, letter in enumerate(kept):
        yield f"{directory}{kept[:index]}[^{letter}]**"
