"""What a stack's objects are called, and how they are marked as its own: as Docker does."""

from __future__ import annotations

from typing import Any

from shoal.model.stacks import NAMESPACE_LABEL


class Namespace:
    """The names of one stack."""

    def __init__(self, stack: str) -> None:
        self.stack = stack

    def scoped(self, name: str) -> str:
        """`STACK_NAME`."""
        return f"{self.stack}_{name}"

    def name_of(self, key: str, value: dict[str, Any]) -> str:
        """What a network, volume, secret or config is called in the cluster."""
        if value.get("external"):
            return str(value.get("name") or key)
        return str(value.get("name") or self.scoped(key))

    def labels(self, labels: dict[str, str] | None) -> dict[str, str]:
        """The labels of the file and the stack's."""
        return {**(labels or {}), NAMESPACE_LABEL: self.stack}
