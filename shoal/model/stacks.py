"""What makes a stack: its label on all that belongs to it, and the names of its revisions."""

from __future__ import annotations

from shoal.model.objects import Stack

NAMESPACE_LABEL = "com.docker.stack.namespace"
"""The same as Docker's, so that both see the same stacks."""
IMAGE_LABEL = "com.docker.stack.image"
"""The image of a service as its file names it, whatever it was pinned to; Docker's, too."""
REVISIONS_MAX = 10
REVISION_MARK = "@"
"""Stands in no name that a user may give."""


def former_name(name: str, revision: int) -> str:
    """What a revision is called once there is a newer one."""
    return f"{name}{REVISION_MARK}{revision}"


def stack_name(stack: Stack) -> str:
    """The name of the stack that a revision is of."""
    return stack.spec.annotations.name.partition(REVISION_MARK)[0]


def is_former_stack(stack: Stack) -> bool:
    """Whether there is a newer revision."""
    return REVISION_MARK in stack.spec.annotations.name
