"""SELinux on this node: whether containers get labels, which, and labels for what they share.

Only with `--selinux-enabled`, as with dockerd; then a kernel or policy that lacks it is refused at
the start, never passed over. A container keeps its labels as long as it is there; they stand in its
bundle, and from the bundles a new worker learns which categories are taken.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec
import structlog

from shoal.errors import FailedPrecondition, InvalidArgument, Unimplemented
from worker.runtime import selinux
from worker.runtime.api import ContainerConfig, Mount
from worker.runtime.lean.files import BUNDLE_FILE
from worker.runtime.selinux import Labels, Policy

_ATTRIBUTE = "security.selinux"
_NEVER = frozenset(
    f"/{name}" for name in (
        "", "bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "mnt", "opt", "proc",
        "root", "run", "sbin", "srv", "sys", "tmp", "usr", "var", "var/lib", "var/tmp",
    )
)  # fmt: skip
"""Relabelled, they would be the node's no more."""

_log = structlog.get_logger()


class SELinux:
    """One per runtime. enabled: whether containers are to be labelled."""

    def __init__(self, *, enabled: bool, root: Path = Path("/")) -> None:
        self.enabled = enabled
        self._root = root
        self._policy: Policy
        self._labels: dict[str, Labels] = {}

    async def open(self, containers: Path) -> None:
        """Read the policy, and who has which labels. Raises: FailedPrecondition."""
        if self.enabled:
            self._policy = await asyncio.to_thread(self._read_policy)
            self._labels = await asyncio.to_thread(_labels_in, containers)

    async def labels_for(self, config: ContainerConfig) -> Labels:
        """Those a container has, or gets now. Raises: InvalidArgument, Unimplemented."""
        if not self.enabled:
            if set(config.selinux_labels) - {"disable"}:
                raise Unimplemented(
                    "selinux_labels: containers are not labelled on this node: start swarmd with "
                    "--selinux-enabled, on a kernel that runs SELinux"
                )
            return Labels()
        known = self._labels.get(config.id)
        if known is None:
            wish = self._wish(config)
            level = "" if wish.disable or wish.level else self._free_level()
            known = self._labels[config.id] = selinux.labels_of(wish, self._policy, level)
            for label in filter(None, (known.process, known.mount)):
                if not await asyncio.to_thread(self._is_valid, label):
                    raise InvalidArgument(f"selinux_labels: the policy has no label {label}")
        return known

    def knows(self, container: str) -> bool:
        """Whether it has labels."""
        return container in self._labels

    def forget(self, container: str) -> None:
        """It is gone: another one may have its categories."""
        self._labels.pop(container, None)

    async def relabel(self, mounts: tuple[Mount, ...], labels: Labels) -> None:
        """Give what is shared with a container the label it asks for. Raises: InvalidArgument."""
        for mount in mounts if self.enabled else ():
            if mount.relabel:
                check_relabel(mount)
                label = selinux.parse(labels.mount)
                shared = mount.relabel == "shared"
                wanted = label.at(selinux.SHARED_LEVEL) if shared else label
                await asyncio.to_thread(_relabel, mount.source, str(wanted))

    def _wish(self, config: ContainerConfig) -> selinux.Wish:
        """Docker's rule: what is asked for, else none for who sees the node, else the donor's."""
        if config.selinux_labels:
            return selinux.wish_of(config.selinux_labels)
        if config.privileged or "host" in (config.pid_mode, config.ipc_mode):
            return selinux.Wish(disable=True)
        for mode in (config.pid_mode, config.ipc_mode):
            if mode.startswith("container:"):
                return selinux.like(self._labels.get(mode.removeprefix("container:"), Labels()))
        return selinux.Wish()

    def _free_level(self) -> str:
        taken = {selinux.parse(one.mount).level for one in self._labels.values() if one.mount}
        return selinux.free_level(taken, secrets.randbelow(selinux.PAIRS))

    def _read_policy(self) -> Policy:
        if not (self._root / "sys/fs/selinux/enforce").exists():
            raise FailedPrecondition(
                "--selinux-enabled: this kernel runs no SELinux: boot it with security=selinux "
                "and a policy, or start swarmd without the option"
            )
        kind = _setting(self._root / "etc/selinux/config", "SELINUXTYPE")
        path = self._root / "etc/selinux" / kind / "contexts/lxc_contexts"
        try:
            policy = selinux.policy_of(path.read_text(encoding="utf-8"))
            for label in (policy.process, policy.file):
                if not self._is_valid(str(label)):
                    raise InvalidArgument(f"{label} is in {path}, but not in the policy")
        except (OSError, InvalidArgument) as error:
            raise FailedPrecondition(
                f"--selinux-enabled: the policy {kind!r} knows no containers: {error}; install "
                "one that does (container-selinux)"
            ) from None
        return policy

    def _is_valid(self, label: str) -> bool:
        """Whether the policy that is loaded has it. Raises: OSError."""
        fd = os.open(self._root / "sys/fs/selinux/context", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, label.encode() + b"\0")
        except OSError as error:
            if error.errno == errno.EINVAL:
                return False
            raise
        finally:
            os.close(fd)
        return True


def check_relabel(mount: Mount) -> None:
    """Refuse to make the node's own directories a container's. Raises: InvalidArgument."""
    if os.path.normpath(os.path.realpath(mount.source)) in _NEVER:
        raise InvalidArgument(
            f"SELinux relabeling of {mount.source} is not allowed: mount a directory of the "
            "container's own, or use --security-opt label=disable"
        )


def _relabel(top: str, label: str) -> None:
    """Everything below, links themselves and not what they name. Raises: FailedPrecondition."""
    try:
        _set(top, label)
        for directory, names, files in os.walk(top):
            for name in (*names, *files):
                _set(os.path.join(directory, name), label)
    except FileNotFoundError:
        return  # made at the start, or gone meanwhile
    except OSError as error:
        raise FailedPrecondition(
            f"SELinux relabeling of {error.filename or top} failed: {error.strerror}"
        ) from None


def _set(path: str, label: str) -> None:
    os.setxattr(path, _ATTRIBUTE, label.encode() + b"\0", follow_symlinks=False)


def _labels_in(containers: Path) -> dict[str, Labels]:
    found = {}
    for path in containers.glob(f"*/{BUNDLE_FILE}"):
        try:
            bundle: Mapping[str, Mapping[str, str]] = msgspec.json.decode(path.read_bytes())
            process = bundle["process"].get("selinuxLabel", "")
            mount = bundle["linux"].get("mountLabel", "")
        except (OSError, msgspec.MsgspecError, KeyError, AttributeError) as error:
            _log.warning("selinux.bundle_unreadable", path=str(path), reason=str(error))
            continue
        if mount:
            found[path.parent.name] = Labels(process, mount)
    return found


def _setting(path: Path, name: str) -> str:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    values = [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]
    return values[-1].strip() if values else ""
