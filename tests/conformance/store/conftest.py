"""The store over each kind of consensus, so that one suite holds for all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest

from manager.store.store import Store
from tests.support.alone import alone
from tests.support.etcd import Etcd, etcd_server, etcd_store, needs_etcd
from tests.support.managing import HandClock

_prefixes = count(1)


class Backend(Protocol):
    """Opens the store; again, it holds what it held. The clock is the test's."""

    clock: HandClock

    def opened(self) -> AbstractAsyncContextManager[Store]: ...


class Embedded:
    def __init__(self, directory: Path) -> None:
        self.clock = HandClock()
        self._directory = directory

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        async with alone(self._directory, clock=self.clock) as (store, _):
            yield store


class OverEtcd:
    def __init__(self, server: Etcd) -> None:
        self.clock = HandClock()
        self._url = server.url(f"conformance/{next(_prefixes)}")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Store]:
        async with etcd_store(self._url, address="me:1", clock=self.clock) as (store, _):
            yield store


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as found:
        yield found


@pytest.fixture(params=["embedded", pytest.param("etcd", marks=[pytest.mark.etcd, needs_etcd])])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    if request.param == "embedded":
        return Embedded(tmp_path / "raft")
    return OverEtcd(request.getfixturevalue("server"))
