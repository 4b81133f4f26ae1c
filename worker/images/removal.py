"""What a removal takes away, by Docker's rules. Pure.

A name is only taken away while others are left; the last takes the image with it. By id all names
go, if they are of one repository or it is forced. With the last tag of a repository goes what its
registry calls the image. Never removed, whatever is forced: images that others were made from,
that somebody holds a lease on, or that a container needs. Docker lets a forced removal take the
image of a stopped container; here its name goes and the image stays.
Source: moby daemon/images/image_delete.go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from shoal.errors import FailedPrecondition, NotFound
from shoal.model.reference import Reference, parse_reference
from worker.images.index import Index, resolve
from worker.images.model import Removed, User


class Plan(msgspec.Struct, frozen=True):
    """index: what it is afterwards. untagged, images: names and ids that go, in order."""

    index: Index
    untagged: tuple[str, ...] = ()
    images: tuple[str, ...] = ()


class Rules(msgspec.Struct, frozen=True):
    """users: containers by image id. leased: ids that are held. prune: unnamed parents go, too."""

    users: Mapping[str, Sequence[User]]
    leased: Collection[str] = ()
    force: bool = False
    prune: bool = True


def plan(index: Index, ref: str, rules: Rules) -> Plan:
    """What removing `ref` does. Raises NotFound, InvalidArgument, FailedPrecondition."""
    image_id, name = resolve(index, ref)
    if name is not None:
        return _by_name(index, image_id, _found_as(index, image_id, name), ref, rules)
    return _by_id(index, image_id, rules)


def _by_name(index: Index, image_id: str, name: str, ref: str, rules: Rules) -> Plan:
    names = _names(index, image_id)
    if not rules.force and _of_one_repository(names):
        for user in rules.users.get(image_id, ()):
            raise FailedPrecondition(
                f'conflict: unable to remove repository reference "{ref}" (must force) - container'
                f" {user.container[:12]} is using its referenced image {_short(image_id)}"
            )
    gone = [name]
    if name in index.names and not any(
        _repository(other) == _repository(name)
        for other in index.names_of(image_id)
        if other != name
    ):
        gone += [one for one in index.digests_of(image_id) if _repository(one) == _repository(name)]
    left = index.without_names(gone)
    untagged = tuple(_familiar(one) for one in gone)
    if len(gone) < len(names):
        return Plan(left, untagged)
    if _conflict(index, image_id, rules):  # it stays, without a name
        return Plan(left, untagged)
    return _with_parents(left, image_id, untagged, rules)


def _by_id(index: Index, image_id: str, rules: Rules) -> Plan:
    names = _names(index, image_id)
    conflict = _conflict(index, image_id, rules)
    if not conflict and not rules.force and not _of_one_repository(names):
        conflict = _worded(
            image_id, "must be forced", "image is referenced in multiple repositories"
        )
    if conflict:
        raise FailedPrecondition(conflict)
    return _with_parents(index, image_id, tuple(_familiar(one) for one in names), rules)


def _with_parents(index: Index, image_id: str, untagged: tuple[str, ...], rules: Rules) -> Plan:
    """The image, and the images it was made from as far as nothing else needs them."""
    gone = [image_id]
    parent = index.images[image_id].parent
    index = index.without_image(image_id)
    while rules.prune and parent in index.images and not _names(index, parent):
        if _conflict(index, parent, rules):
            break
        gone.append(parent)
        image_id, parent = parent, index.images[parent].parent
        index = index.without_image(image_id)
    return Plan(index, untagged, tuple(gone))


def _conflict(index: Index, image_id: str, rules: Rules) -> str:
    """Why the image cannot go, or ""."""
    if index.children_of(image_id):
        return _worded(image_id, "cannot be forced", "image has dependent child images")
    users = sorted(
        rules.users.get(image_id, ()), key=lambda user: (not user.running, user.container)
    )
    for user in users:
        state = "running" if user.running else "stopped"
        how = "cannot be forced" if user.running or rules.force else "must be forced"
        return _worded(
            image_id, how, f"image is being used by {state} container {user.container[:12]}"
        )
    if image_id in rules.leased:
        return _worded(image_id, "cannot be forced", "image is being read or built upon")
    return ""


def _worded(image_id: str, how: str, why: str) -> str:
    return f"conflict: unable to delete {_short(image_id)} ({how}) - {why}"


def _found_as(index: Index, image_id: str, name: Reference) -> str:
    """The full name in the index. Raises NotFound when only the manifest's digest is known."""
    if name.digest is None:
        return str(name)
    full = f"{name.registry}/{name.repository}@{name.digest}"
    if index.digests.get(full) != image_id:
        raise NotFound(f"No such image: {name.familiar()}")
    return full


def _names(index: Index, image_id: str) -> tuple[str, ...]:
    return (*index.names_of(image_id), *index.digests_of(image_id))


def _of_one_repository(names: Sequence[str]) -> bool:
    """Whether at most one tag, and what the registry calls it, name the image."""
    tags = sum("@" not in name for name in names)
    return tags <= 1 and len({_repository(name) for name in names}) <= 1


def _repository(name: str) -> str:
    found = parse_reference(name)
    return f"{found.registry}/{found.repository}"


def _familiar(name: str) -> str:
    return parse_reference(name).familiar()


def _short(image_id: str) -> str:
    return image_id[7:19]


def as_lines(untagged: Sequence[str], deleted: Sequence[str]) -> tuple[Removed, ...]:
    """A removal told line by line."""
    return (
        *(Removed(untagged=name) for name in untagged),
        *(Removed(deleted=one) for one in deleted),
    )
