"""One run: raise managers, let clients work while they are broken, judge what was seen."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable

import grpc
import msgspec

from shoal.api.v1 import control_pb2
from shoal.api.v1.control_pb2_grpc import ControlStub
from tests.linearizability.bugs import BUGS, LOST_EVENT, lose_events
from tests.linearizability.clients import KEEP, Client, Recorder, Workload, read_all
from tests.linearizability.history import Call, Item, Kind, Outcome
from tests.linearizability.judge import Findings, judge
from tests.linearizability.nemesis import Climate, Nemesis
from tests.linearizability.service import GrpcService, Service, item_of
from tests.linearizability.site import Site, a_site
from tests.linearizability.watcher import Watcher

MEND_S = 60.0
"""How long a cluster of which everything runs again may take to answer everywhere."""
LONGER_S = 60.0
_FENCE = "fence"


class Settings(msgspec.Struct, frozen=True):
    """What to run. bug: of `BUGS` or LOST_EVENT, or none; trouble: whether to break anything.

    A busy machine does less in the same time: a run goes on, at most LONGER_S, until it has seen
    so many operations and troubles.
    """

    managers: int = 1
    duration_s: float = 30.0
    seed: int = 1
    bug: str = ""
    trouble: bool = True
    operations_min: int = 300
    troubles_min: int = 3
    workload: Workload = Workload()
    climate: Climate = Climate()


class Report(msgspec.Struct, frozen=True):
    """What came of it."""

    findings: Findings
    troubles: Counter[str]
    failed_reads: int
    resumed: int
    longest_gap_s: float

    def summary(self) -> str:
        """One line of numbers."""
        found, done = self.findings, ", ".join(f"{n} {w}" for w, n in self.troubles.items())
        return (
            f"{found.operations} operations ({found.unknown} of unknown outcome), {found.steps} "
            f"steps; {found.kept} creations kept; {found.commits_watched} commits watched in "
            f"{found.sessions} sessions, {self.resumed} resumed; {self.failed_reads} failed reads; "
            f"longest time without a write {self.longest_gap_s:.1f} s; troubles: {done or 'none'}"
        )


async def run(settings: Settings) -> Report:
    """See the module. Raises: TimeoutError when the mended cluster does not answer; Undecided."""
    async with a_site(settings.managers) as site:
        return await _Run(settings, site).run()


class _Run:
    def __init__(self, settings: Settings, site: Site) -> None:
        self._settings = settings
        self._site = site
        self._recorder = Recorder()
        self._watchers = [Watcher(node, site.socket(node)) for node in site.nodes]

    async def run(self) -> Report:
        settings = self._settings
        nemesis = Nemesis(self._site, self._leader, seed=settings.seed, climate=settings.climate)
        watches = [asyncio.create_task(each.run(lambda: False)) for each in self._watchers]
        try:
            await self._work(nemesis)
            services = [GrpcService(self._site.socket(node)) for node in self._site.nodes]
            await read_all(self._broken(services), self._recorder, deadline_s=MEND_S)
            present = await self._kept()
            await self._fence(services[0])
            for service in services:
                await service.close()
        finally:
            for watch in watches:
                watch.cancel()
            ended = await asyncio.gather(*watches, return_exceptions=True)
        failed = [one for one in ended if isinstance(one, Exception)]
        assert not failed, failed
        sessions = [session for each in self._watchers for session in each.sessions()]
        if settings.bug == LOST_EVENT:
            sessions = lose_events(sessions)
        history = list(self._recorder.history)
        findings = await asyncio.to_thread(judge, history, present, sessions)
        return Report(
            findings=findings,
            troubles=nemesis.done,
            failed_reads=self._recorder.failed_reads,
            resumed=sum(each.resumed for each in self._watchers),
            longest_gap_s=self._longest_gap_s(),
        )

    async def _work(self, nemesis: Nemesis) -> None:
        """Clients and trouble until the time is up; trouble ends first, and mends what it broke."""
        settings = self._settings
        end_s = time.monotonic() + settings.duration_s
        trouble_over = asyncio.Event()

        def time_is_up() -> bool:
            late_s = time.monotonic() - end_s
            enough = len(self._recorder.history) >= settings.operations_min and (
                not settings.trouble or nemesis.done.total() >= settings.troubles_min
            )
            return late_s > (0 if enough else LONGER_S)

        async def trouble() -> None:
            try:
                if settings.trouble:
                    await nemesis.run(time_is_up)
            finally:
                trouble_over.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(trouble())
            for number in range(settings.workload.clients):
                group.create_task(
                    self._client(number, lambda: time_is_up() and trouble_over.is_set())
                )

    async def _client(self, number: int, stopping: Callable[[], bool]) -> None:
        services = [GrpcService(self._site.socket(node)) for node in self._site.nodes]
        client = Client(
            number, self._broken(services), self._recorder, self._settings.workload,
            seed=self._settings.seed,
        )  # fmt: skip
        try:
            await client.run(stopping)
        finally:
            for service in services:
                await service.close()

    def _broken(self, services: list[GrpcService]) -> list[Service]:
        bug = BUGS.get(self._settings.bug)
        return [service if bug is None else bug(service) for service in services]

    async def _kept(self) -> list[Item]:
        """What is there at the end of the names that are only ever created."""
        request = control_pb2.ListServicesRequest(page_size=500)
        request.filters.names.append(f"{KEEP}-")
        found: list[Item] = []
        async with grpc.aio.insecure_channel(f"unix:{self._site.socket('m1')}") as channel:
            while True:
                page = await ControlStub(channel).ListServices(request, timeout=MEND_S)
                found += [item_of(service) for service in page.services]
                request.page_token = page.next_page_token
                if not request.page_token:
                    return found

    async def _fence(self, service: GrpcService) -> None:
        """Write once more and wait until every watcher has seen it, or seen later things.

        Raises: TimeoutError: a watch that stands still loses events as well.
        """
        outcome: Outcome | None = None
        number = 0
        async with asyncio.timeout(MEND_S):
            while outcome is None:
                number += 1
                call = Call(Kind.CREATE, f"{_FENCE}-{number}", f"{_FENCE}-{number}", f"f{number}")
                outcome = await self._recorder.call(-100, service, call)
            (item,) = outcome.items
            while any(watcher.last < item.version for watcher in self._watchers):
                await asyncio.sleep(0.05)

    async def _leader(self) -> str:
        """Name of the node that leads, as any manager says."""
        for node in self._site.nodes:
            async with grpc.aio.insecure_channel(f"unix:{self._site.socket(node)}") as channel:
                try:
                    request = control_pb2.ListNodesRequest()
                    listed = await ControlStub(channel).ListNodes(request, timeout=1.0)
                except grpc.aio.AioRpcError:
                    continue
            for found in listed.nodes:
                if found.manager_status.leader:
                    return str(found.description.hostname)
        return ""

    def _longest_gap_s(self) -> float:
        """Between two acknowledged writes; a figure, not a verdict."""
        times = sorted(
            operation.returned_ns
            for operation in self._recorder.history
            if operation.returned_ns is not None
            and operation.call.kind in (Kind.CREATE, Kind.UPDATE, Kind.REMOVE)
        )
        gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(times)]
        return max(gaps, default=0.0)
