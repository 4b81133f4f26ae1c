"""Entry of the small processes: `python -I -S -c BOOT root run state cgroup-parent role`."""

from __future__ import annotations

import os
import sys

# Up to four descriptors per container in one process; containers inherit it, and programs that
# close every possible descriptor would crawl with a million.
FILES_MAX = 65536
ROLES = ("spawn", "keeper", "supervisor", "fork-server", "logger")


def main() -> None:
    """Run the role named by the last argument."""
    run_dir, state_dir, cgroup_parent, role = sys.argv[2:6]
    if role == "spawn":
        spawn()
    elif role == "keeper":
        from worker.runtime.lean import keeper

        keeper.main(run_dir, state_dir)
    elif role == "supervisor":
        run_read_only("fork-server")
    elif role == "fork-server":
        from worker.runtime.lean import supervisor

        supervisor.main(run_dir, state_dir, cgroup_parent, 3)
    elif role == "logger":
        # By name: the runtime starts the logger, but knows nothing of it.
        __import__("worker.logs.logger", fromlist=["main"]).main(run_dir, state_dir)
    else:
        sys.exit(f"unknown role {role}; one of {', '.join(ROLES)}")


def run_read_only(role: str) -> None:
    """Execute the interpreter again through a read-only mount nobody else has.

    A container's first process is a clone of the supervisor until it executes its program, and an
    image may name `/proc/self/exe` as that program or its interpreter. Through this mount the
    host's binary cannot be opened for writing then (CVE-2019-5736).
    """
    from worker.runtime.lean import linux

    tree = linux.open_tree(linux.AT_FDCWD, os.path.realpath(sys.executable), recursive=False)
    attributes = linux.MOUNT_ATTR_RDONLY
    linux.set_mount_attributes(tree, attributes, propagation=linux.MS_PRIVATE)
    os.execve(tree, [*sys.orig_argv[:-1], role], dict(os.environ))  # noqa: S606


def spawn() -> None:
    """Detach from the caller and become the keeper.

    The subreaper flag survives execve, so the keeper itself need not load ctypes.
    """
    import resource

    from worker.runtime.lean import linux

    if os.fork():
        return
    os.setsid()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, enough), hard))
    os.chdir("/")
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    os.execv(sys.executable, [*sys.orig_argv[:-1], "keeper"])  # noqa: S606
