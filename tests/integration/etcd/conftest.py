"""One etcd for the tests that do no harm to it; a prefix of its own for each."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from tests.support.etcd import Etcd, etcd_server

_prefixes = count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as found:
        yield found


@pytest.fixture
def prefix() -> str:
    return f"test/{next(_prefixes)}"
