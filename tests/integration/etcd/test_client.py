"""The client against real servers: pages, watches, leases, limits, members that fail."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from manager.etcd.client import EtcdClient
from manager.etcd.errors import Compacted
from manager.store.store import TransactionTooLarge
from shoal.errors import DeadlineExceeded, NotFound, Unavailable
from shoal.etcd.v1 import rpc_pb2 as pb
from tests.support.etcd import Etcd, Wire, etcd_client, etcd_cluster, etcd_server, needs_etcd

pytestmark = [pytest.mark.etcd, needs_etcd]


def puts(*pairs: tuple[bytes, bytes]) -> pb.TxnRequest:
    request = pb.TxnRequest()
    for key, value in pairs:
        request.success.append(pb.RequestOp(request_put=pb.PutRequest(key=key, value=value)))
    return request


async def put(client: EtcdClient, *pairs: tuple[bytes, bytes]) -> int:
    return (await client.txn(puts(*pairs))).header.revision


async def test_pages_show_one_revision_while_others_write(server: Etcd, prefix: str):
    root = prefix.encode() + b"/"
    async with etcd_client(server.url()) as client:
        last = [await put(client, (root + b"%03d" % n, b"old")) for n in range(25)][-1]
        seen = []
        async for page in client.pages(root, root[:-1] + b"0", keys_max=10):
            assert page.revision == last
            seen += [(kv.key, kv.value) for kv in page.kvs]
            await put(client, (root + b"%03d" % 24, b"new"), (root + b"100", b"new"))
        assert seen == [(root + b"%03d" % n, b"old") for n in range(25)]
        assert [page.kvs async for page in client.pages(b"nothing/", b"nothing0")] == [()]


async def test_a_page_of_large_values_is_asked_for_in_parts(server: Etcd, prefix: str):
    root = prefix.encode() + b"/"
    async with etcd_client(server.url()) as client:
        for number in range(20):
            await put(client, (root + b"%03d" % number, b"x" * 1_000_000))
        sizes = [len(page.kvs) async for page in client.pages(root, root[:-1] + b"0", keys_max=20)]
        assert sum(sizes) == 20
        assert max(sizes) < 20


async def test_a_watch_gives_whole_revisions_also_in_fragments(server: Etcd, prefix: str):
    root = prefix.encode() + b"/"
    blob = b"x" * 450_000
    async with etcd_client(server.url()) as client:
        revisions = [
            await put(client, (root + b"a", blob), (root + b"b", blob), (root + b"c", blob))
            for _ in range(6)
        ]
        end = root[:-1] + b"0"
        async with client.watch(root, end, start_revision=revisions[0], prev_kv=True) as watch:
            seen = []
            async for revision in watch:
                seen.append(revision.revision)
                assert [event.kv.key[-1:] for event in revision.events] == [b"a", b"b", b"c"]
                for event in revision.events:
                    assert event.kv.mod_revision == revision.revision
                    assert event.kv.value == blob
                    assert event.HasField("prev_kv") == (revision.revision != revisions[0])
                if len(seen) == 6:
                    break
        assert seen == revisions


async def test_a_watch_keeps_the_order_of_the_transaction(server: Etcd, prefix: str):
    root = prefix.encode() + b"/"
    async with etcd_client(server.url()) as client:
        start = await put(client, (root + b"b", b"1"))
        async with client.watch(root, root[:-1] + b"0", start_revision=start + 1) as watch:
            request = puts((root + b"z", b"1"), (root + b"a", b"1"))
            delete = pb.DeleteRangeRequest(key=root + b"b")
            request.success.insert(1, pb.RequestOp(request_delete_range=delete))
            await client.txn(request)
            revision = await anext(aiter(watch))
        kinds = [(event.kv.key[-1:], event.type) for event in revision.events]
        assert kinds == [(b"z", pb.Event.PUT), (b"b", pb.Event.DELETE), (b"a", pb.Event.PUT)]


async def test_progress_can_be_asked_for(server: Etcd, prefix: str):
    root = prefix.encode() + b"/"
    async with etcd_client(server.url()) as client:
        revision = await put(client, (b"elsewhere", b""))
        async with client.watch(root, root[:-1] + b"0", start_revision=revision) as watch:
            await watch.request_progress()
            async with asyncio.timeout(60):
                progress = await anext(aiter(watch))
        assert progress.events == ()
        assert progress.revision >= revision


async def test_what_is_compacted_is_said_to_be(server: Etcd, prefix: str):
    root = prefix.encode() + b"/"
    async with etcd_client(server.url()) as client:
        first = await put(client, (root + b"a", b"1"))
        last = await put(client, (root + b"a", b"2"))
        await client.compact(last)
        with pytest.raises(Compacted, match="compacted: read the state again"):
            await client.range(pb.RangeRequest(key=root + b"a", revision=first))
        with pytest.raises(Compacted):
            await client.compact(last)
        async with client.watch(root + b"a", b"", start_revision=first) as watch:
            with pytest.raises(Compacted, match=f"compacted up to {last}"):
                await anext(aiter(watch))


async def test_a_lease_lives_as_long_as_it_is_kept_alive(server: Etcd, prefix: str):
    key = prefix.encode()
    async with etcd_client(server.url()) as client:
        lease = await client.grant(4)
        request = pb.TxnRequest()
        bound = pb.PutRequest(key=key, value=b"", lease=lease)
        request.success.append(pb.RequestOp(request_put=bound))
        start = (await client.txn(request)).header.revision
        for _ in range(6):  # well beyond the four seconds
            await asyncio.sleep(1)
            assert await client.keep_alive(lease, timeout_s=5) == 4
        assert (await client.range(pb.RangeRequest(key=key))).kvs[0].lease == lease
        async with client.watch(key, b"", start_revision=start + 1) as watch:
            async with asyncio.timeout(60):
                ended = await anext(aiter(watch))
        assert ended.events[0].type == pb.Event.DELETE
        with pytest.raises(NotFound, match="has ended"):
            await client.keep_alive(lease, timeout_s=5)
        with pytest.raises(NotFound, match="lease not found"):
            await client.revoke(lease)


async def test_the_limits_of_the_server_have_names(server: Etcd, prefix: str):
    root = prefix.encode() + b"/"
    async with etcd_client(server.url()) as client:
        await put(client, *((root + b"%d" % n, b"") for n in range(128)))
        with pytest.raises(TransactionTooLarge, match=r"too many operations.*--max-txn-ops"):
            await put(client, *((root + b"%d" % n, b"") for n in range(129)))
        for size in (1_600_000, 4_000_000):
            with pytest.raises(TransactionTooLarge, match="--max-request-bytes"):
                await put(client, (root, b"x" * size))


async def test_nobody_there_means_nothing_was_sent():
    async with etcd_client("etcd://127.0.0.1:1,127.0.0.1:2/x?timeout_s=1.5") as client:
        with pytest.raises(Unavailable, match=r"no connection to 127.0.0.1:1, 127.0.0.1:2") as lost:
            await client.txn(pb.TxnRequest())
        assert lost.value.context == {"sent": False}
        with pytest.raises(Unavailable):
            await client.range(pb.RangeRequest(key=b"x"))


async def test_an_answer_that_does_not_come_ends_at_the_deadline(server: Etcd, prefix: str):
    async with AsyncExitStack() as stack:
        wire = await stack.enter_async_context(Wire(server.port))
        url = f"etcd://127.0.0.1:{wire.port}/x?timeout_s=1"
        client = await stack.enter_async_context(etcd_client(url))
        await client.status()
        wire.answers.clear()
        with pytest.raises(DeadlineExceeded, match="may or may not have been carried out"):
            await put(client, (prefix.encode(), b""))
        wire.answers.set()


async def test_status_names_the_leader(server: Etcd):
    async with etcd_client(server.url()) as client:
        status = await client.status()
    assert status.version.startswith("3.")
    assert status.leader == status.header.member_id
    assert status.db_size >= status.db_size_in_use > 0


async def test_members_may_fail_one_after_the_other(tmp_path: Path):
    with etcd_cluster(tmp_path) as servers:
        endpoints = ",".join(one.endpoint for one in servers)
        async with etcd_client(f"etcd://{endpoints}/x?timeout_s=30") as client:
            for turn, victim in enumerate(servers):
                victim.kill()
                while True:  # a transaction is sent once: its author tries again
                    with contextlib.suppress(Unavailable, DeadlineExceeded):
                        await put(client, (b"x", b"%d" % turn))
                        break
                answer = await client.range(pb.RangeRequest(key=b"x"))
                assert answer.kvs[0].value == b"%d" % turn
                await asyncio.to_thread(victim.start)


async def test_a_member_without_a_majority_refuses_and_a_frozen_one_is_left(tmp_path: Path):
    with etcd_cluster(tmp_path) as servers:
        endpoints = ",".join(one.endpoint for one in servers)
        async with etcd_client(f"etcd://{endpoints}/x?timeout_s=3") as client:
            await client.range(pb.RangeRequest(key=b"x"))
            servers[0].signal(signal.SIGSTOP)
            try:
                async with asyncio.timeout(60):
                    while True:
                        with contextlib.suppress(Unavailable, DeadlineExceeded):
                            await put(client, (b"x", b"1"))
                            break
                servers[1].kill()
                with pytest.raises((Unavailable, DeadlineExceeded)):
                    await put(client, (b"x", b"2"))
            finally:
                servers[0].signal(signal.SIGCONT)


async def test_restarts_are_survived(tmp_path: Path):
    with etcd_server(tmp_path) as server:
        async with etcd_client(server.url()) as client:
            revision = await put(client, (b"x", b"1"))
            server.kill()
            await asyncio.to_thread(server.start)
            answer = await client.range(pb.RangeRequest(key=b"x"))
            assert answer.kvs[0].mod_revision == revision
