"""A node whose containers have ids of their own."""

from __future__ import annotations

from tests.integration.engine.daemon import EngineNode
from tests.support.accounts import Accounts


class RemappedNode(EngineNode):
    """An `EngineNode` with `--userns-remap default`, in a network of its own; not started yet."""

    def __init__(self) -> None:
        super().__init__("--userns-remap", "default")
        directory = self.base / "etc"
        directory.mkdir()
        self.isolate()
        self._accounts = Accounts(directory)
        self.prefix += self._accounts.prefix

    def close(self) -> None:
        """As an `EngineNode`, and its accounts."""
        super().close()
        self._accounts.close()
