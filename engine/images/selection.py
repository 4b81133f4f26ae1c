"""Which images a list shows and a prune takes. Pure.

A list shows images with a name, and those nobody was made from; with `all` also the steps between.
Source: moby daemon/images/images.go.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from engine.containers.selection import until_ns
from engine.http.filters import Filters
from engine.images.words import unix_time
from shoal.clock import NS_PER_S
from shoal.errors import InvalidArgument, NotFound
from shoal.model.reference import parse_reference
from worker.images.model import Image

ACCEPTED = frozenset(("dangling", "label", "before", "since", "reference", "until"))
PRUNE_ACCEPTED = frozenset(("dangling", "label", "label!", "until"))


class Shown(NamedTuple):
    """An image of a list, with the names that were asked for."""

    image: Image
    tags: tuple[str, ...]
    digests: tuple[str, ...]


class Known(NamedTuple):
    """What the node knows. is_parent: whether images were made from one here."""

    find: Callable[[str], Image]
    is_parent: Callable[[Image], bool]
    now_ns: int


def select(
    images: Iterable[Image], filters: Filters, known: Known, *, shows_all: bool
) -> list[Shown]:
    """Those wanted, of images given newest first. Raises: InvalidArgument."""
    before = [_created(known, ref, "before") for ref in filters.values("before")]
    since = [_created(known, ref, "since") for ref in filters.values("since")]
    until = until_ns(filters, known.now_ns)
    if "dangling" in filters:
        filters.flag("dangling", default=False)
    chosen = []
    for image in images:
        made_ns = unix_time(image.created) * NS_PER_S
        if not all(made_ns < bound for bound in before):
            continue
        if not all(made_ns > bound for bound in since):
            continue
        if (until is not None and made_ns > until) or not filters.matches_labels(
            image.config.labels
        ):
            continue
        shown = _named(image, filters)
        if shown is None or not (shows_all or _is_shown(shown, known)):
            continue
        chosen.append(shown)
    return chosen


def _named(image: Image, filters: Filters) -> Shown | None:
    """The image with the names that match; None when it is not wanted."""
    named = bool(image.repo_tags or image.repo_digests)
    if "dangling" in filters and filters.flag("dangling", default=False) == named:
        return None
    if "reference" not in filters:
        return Shown(image, image.repo_tags, image.repo_digests)
    wishes = [_pattern(wish) for wish in filters.values("reference")]
    tags, digests = (
        tuple(name for name in names if any(_matches(name, wish) for wish in wishes))
        for names in (image.repo_tags, image.repo_digests)
    )
    return Shown(image, tags, digests) if tags or digests else None


def _is_shown(shown: Shown, known: Known) -> bool:
    """Steps between two images are hidden, also from who asks for what is dangling."""
    return bool(shown.tags or shown.digests) or not known.is_parent(shown.image)


def _matches(name: str, wish: re.Pattern[str]) -> bool:
    """Whether the whole name or the name without its tag or digest is as wished."""
    reference = parse_reference(name)
    bare = type(reference)(registry=reference.registry, repository=reference.repository)
    return bool(wish.fullmatch(name) or wish.fullmatch(bare.familiar()))


def _pattern(wish: str) -> re.Pattern[str]:
    """A pattern of Go's path.Match: `*` and `?` stop at a slash. Raises: InvalidArgument."""
    out, at = "", 0
    while at < len(wish):
        letter = wish[at]
        if letter == "*":
            out += "[^/]*"
        elif letter == "?":
            out += "[^/]"
        elif letter == "[":
            end = wish.find("]", at + 2)
            if end < 0:
                raise InvalidArgument(f"invalid filter 'reference={wish}': syntax error in pattern")
            inner = wish[at + 1 : end]
            negated = "^" if inner.startswith("^") else ""
            out += f"[{negated}{_class(inner.removeprefix('^'))}]"
            at = end
        elif letter == "\\" and at + 1 < len(wish):
            at += 1
            out += re.escape(wish[at])
        else:
            out += re.escape(letter)
        at += 1
    try:
        return re.compile(out)
    except re.error:
        raise InvalidArgument(
            f"invalid filter 'reference={wish}': syntax error in pattern"
        ) from None


def _class(inner: str) -> str:
    return "".join(letter if letter == "-" else re.escape(letter) for letter in inner)


def _created(known: Known, ref: str, name: str) -> int:
    try:
        return unix_time(known.find(ref).created) * NS_PER_S
    except NotFound:
        raise InvalidArgument(f"invalid filter '{name}={ref}': no such image: {ref}") from None


def prunable(
    images: Iterable[Image], filters: Filters, known: Known, used: Callable[[Image], bool]
) -> list[Image]:
    """Those a prune may take: nothing was made from them, and no container uses them.

    Raises: InvalidArgument.
    """
    only_dangling = filters.flag("dangling", default=True)
    until = until_ns(filters, known.now_ns)
    return [
        image
        for image in images
        if not known.is_parent(image)
        and not (only_dangling and (image.repo_tags or image.repo_digests))
        and not used(image)
        and (until is None or unix_time(image.created) * NS_PER_S <= until)
        and filters.matches_labels(image.config.labels)
        and filters.lacks_labels(image.config.labels)
    ]
