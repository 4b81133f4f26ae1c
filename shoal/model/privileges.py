"""Rules for how services' containers are confined, in the words of Docker's API. Pure.

Whether a node can do it (a profile the kernel cannot follow, a kernel without AppArmor) only the
node knows: it then rejects the task with the reason.
"""

from __future__ import annotations

import json

from shoal.errors import InvalidArgument, Unimplemented
from shoal.model.types import Privileges

SECCOMP_MODES = frozenset(("", "default", "unconfined", "custom"))
APPARMOR_MODES = frozenset(("", "default", "disabled"))


def check_privileges(asked: Privileges) -> None:
    """Refuse what contradicts itself. Raises: InvalidArgument, Unimplemented."""
    if (
        asked.credential_spec_config
        or asked.credential_spec_file
        or asked.credential_spec_registry
    ):  # fmt: skip
        raise Unimplemented("credential spec: it is of Windows, and nodes run Linux")
    if asked.seccomp_mode not in SECCOMP_MODES:
        raise InvalidArgument(
            f"seccomp: mode {asked.seccomp_mode!r} must be default, unconfined or custom"
        )
    if asked.apparmor_mode not in APPARMOR_MODES:
        raise InvalidArgument(f"apparmor: mode {asked.apparmor_mode!r} must be default or disabled")
    _check_profile(asked)
    context = (asked.selinux_user, asked.selinux_role, asked.selinux_type, asked.selinux_level)
    if asked.selinux_disable and any(context):
        raise InvalidArgument("selinux: a label is given, and labels are switched off")
    if any("\0" in word for word in context):
        raise InvalidArgument("selinux: must not hold NUL characters")


def _check_profile(asked: Privileges) -> None:
    if (asked.seccomp_mode == "custom") != bool(asked.seccomp_profile):
        raise InvalidArgument("seccomp: give a profile with the mode custom, and only with it")
    if not asked.seccomp_profile:
        return
    try:
        profile = json.loads(asked.seccomp_profile)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"seccomp: the profile is not JSON: {error}") from error
    if not isinstance(profile, dict):
        raise InvalidArgument("seccomp: the profile must be a JSON object")
