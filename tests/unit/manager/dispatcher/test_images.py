"""Images that a node tells of within its session."""

from __future__ import annotations

import pytest

from manager.dispatcher.driver import Dispatcher
from shoal.errors import FailedPrecondition, InvalidArgument
from shoal.model.images import join
from shoal.model.objects import Cluster
from tests.support.managing import HandClock, a_store, running
from tests.support.planning import a_node


async def test_reported_images_are_in_the_node_s_row():
    clock = HandClock()
    store, _ = a_store([Cluster(id="c"), a_node("n1")], clock)
    dispatcher = Dispatcher(store, clock, manager_id="m1")
    async with running(dispatcher.run):
        await dispatcher.report_images("n1", join(["web"]))
        assert store.view.nodes.resolve("n1").description.images == join(["web"])
        with pytest.raises(InvalidArgument, match="images: 3 bytes"):
            await dispatcher.report_images("n1", b"abc")
        with pytest.raises(FailedPrecondition, match="was removed"):
            await dispatcher.report_images("gone", b"")
