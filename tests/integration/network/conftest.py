"""One lab per module: three nodes, two tasks on each of the first two, one on the third."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.network.lab import Lab, running_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with running_lab(tmp_path_factory.mktemp("lab")) as lab:
        for number, node in enumerate((0, 0, 1, 1, 2)):
            lab.start(f"task{number}", lab.nodes[node])
        yield lab
