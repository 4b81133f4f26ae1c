"""Seccomp profiles as the OCI knows them, for runtimes that compile their own. Pure."""

from __future__ import annotations

from typing import Any

from worker.runtime.lean.seccomp_build import applies

_ARCHES = {"x86_64": ("X86_64", "X86", "X32"), "aarch64": ("AARCH64", "ARM")}
_RULE_KEYS = ("action", "args", "errnoRet")


def resolved(
    profile: dict[str, Any], capabilities: tuple[str, ...], machine: str, kernel: tuple[int, int]
) -> dict[str, Any]:
    """The rules of Docker's profile format that hold here, in OCI's."""
    rules = [
        {key: rule[key] for key in _RULE_KEYS if rule.get(key) is not None}
        | {"names": rule.get("names") or [rule["name"]]}
        for rule in profile.get("syscalls") or ()
        if applies(rule, set(capabilities), machine, kernel)
    ]
    given = {key: profile[key] for key in ("defaultAction", "defaultErrnoRet") if key in profile}
    arches = profile.get("architectures") or [f"SCMP_ARCH_{name}" for name in _ARCHES[machine]]
    return given | {"architectures": arches, "syscalls": rules}
