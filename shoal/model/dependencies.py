"""The order of services that depend on each other. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from shoal.errors import InvalidArgument


def in_order(graph: Mapping[str, Collection[str]]) -> list[str]:
    """Every name after those that it depends on; names of no other are passed over.

    Ties are broken by name, so equal graphs give equal orders. Cost: O(N log N) and without
    recursion, however long the chains. Raises: InvalidArgument that shows a cycle.
    """
    left = {name: {one for one in needs if one in graph} for name, needs in graph.items()}
    result: list[str] = []
    followers: dict[str, list[str]] = {}
    for name, needs in left.items():
        for one in needs:
            followers.setdefault(one, []).append(name)
    ready = sorted(name for name, needs in left.items() if not needs)
    while ready:
        fresh: set[str] = set()
        for name in ready:
            result.append(name)
            for follower in followers.get(name, ()):
                left[follower].discard(name)
                if not left[follower]:
                    fresh.add(follower)
        ready = sorted(fresh)
    if len(result) < len(left):
        stuck = {name: needs for name, needs in left.items() if needs}
        raise InvalidArgument(f"depends_on: {' -> '.join(_cycle(stuck))} is a cycle")
    return result


def _cycle(stuck: Mapping[str, Collection[str]]) -> list[str]:
    """One cycle among names of which each depends on another of them."""
    name = min(stuck)
    seen: list[str] = []
    while name not in seen:
        seen.append(name)
        name = min(one for one in stuck[name] if one in stuck)
    return [*seen[seen.index(name) :], name]
