"""Which images a list shows and a prune takes."""

from __future__ import annotations

import pytest

from engine.http.filters import Filters
from engine.images.selection import Known, prunable, select
from shoal.errors import InvalidArgument, NotFound
from tests.support.fakes import an_image
from worker.images.model import Image, ImageConfig

NOW_NS = 1_800_000_000 * 10**9


def image(number: int, *tags: str, digests: tuple[str, ...] = (), labels=None) -> Image:
    base = an_image(ImageConfig(labels=labels or {}), f"sha256:{number:064x}")
    fields = {name: getattr(base, name) for name in base.__struct_fields__}
    created = f"2026-01-01T00:00:0{number}Z"
    return Image(**{**fields, "repo_tags": tags, "repo_digests": digests, "created": created})


IMAGES = [
    image(4, "r.example:5000/lib/bb:v1", digests=("r.example:5000/lib/bb@sha256:" + "a" * 64,)),
    image(3, "busybox:latest", "bb:1", labels={"k": "v"}),
    image(2),
    image(1),
]


def known(*parents: int) -> Known:
    def find(ref):
        for one in IMAGES:
            if ref in (one.id, *one.repo_tags):
                return one
        raise NotFound(f"No such image: {ref}")

    return Known(find, lambda one: int(one.id[7:], 16) in parents, NOW_NS)


def shown(shows_all=False, parents=(1,), **filters):
    chosen = select(
        IMAGES, Filters({name: [wish] for name, wish in filters.items()}), known(*parents),
        shows_all=shows_all,
    )  # fmt: skip
    return [int(one.image.id[7:], 16) for one in chosen]


def test_steps_between_images_are_shown_on_demand():
    assert shown() == [4, 3, 2]
    assert shown(shows_all=True) == [4, 3, 2, 1]


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({"dangling": "true"}, [2]),
        ({"dangling": "false"}, [4, 3]),
        ({"label": "k=v"}, [3]),
        ({"label": "k=w"}, []),
        ({"before": "busybox:latest"}, [2]),
        ({"since": "busybox:latest"}, [4]),
        ({"until": "2026-01-01T00:00:03Z"}, [3, 2]),
        ({"reference": "busybox"}, [3]),
        ({"reference": "*:latest"}, [3]),
        ({"reference": "b?"}, [3]),
        ({"reference": "b*"}, [3]),
        ({"reference": "*/*/bb"}, [4]),
        ({"reference": "*"}, [3]),
        ({"reference": "[a-c]*"}, [3]),
        ({"reference": "[^a-c]*"}, []),
        ({"reference": r"bb\:1"}, [3]),
    ],
)
def test_filters(filters, found):
    assert shown(**filters) == found


def test_only_the_names_asked_for_are_told():
    (one,) = select(IMAGES, Filters({"reference": ["bb"]}), known(), shows_all=False)
    assert one.tags == ("bb:1",)


@pytest.mark.parametrize(
    "filters", [{"reference": "[a"}, {"dangling": "x"}, {"before": "nosuch"}, {"until": "never"}]
)
def test_wishes_that_mean_nothing(filters):
    with pytest.raises(InvalidArgument):
        shown(**filters)


def pruned(used=(), **filters):
    wishes = Filters({name: [wish] for name, wish in filters.items()})
    chosen = prunable(IMAGES, wishes, known(1), lambda one: int(one.id[7:], 16) in used)
    return [int(one.id[7:], 16) for one in chosen]


def test_what_a_prune_takes():
    assert pruned() == [2]
    assert pruned(dangling="false") == [4, 3, 2]
    assert pruned(used=(3, 2), dangling="false") == [4]
    assert pruned(dangling="false", label="k") == [3]
    assert pruned(**{"dangling": "false", "label!": "k"}) == [4, 2]
    assert pruned(dangling="false", until="2026-01-01T00:00:02Z") == [2]
