"""Names and ids of containers: their rules, finding by either, and names for the nameless."""

from __future__ import annotations

import re
import secrets
from collections.abc import Container, Iterable

from engine.http.errors import Refused
from shoal.errors import InvalidArgument, NotFound

RULE = "[a-zA-Z0-9][a-zA-Z0-9_.-]"
_NAME = re.compile(RULE + "+")
_ATTEMPTS = 6
_MOODS = (
    "able", "agile", "amber", "apt", "bold", "brave", "breezy", "bright", "brisk", "calm",
    "candid", "clear", "clever", "cosy", "crisp", "daring", "deft", "eager", "early", "fair",
    "fleet", "fond", "frank", "fresh", "gentle", "glad", "golden", "grand", "hardy", "hazel",
    "jolly", "keen", "kind", "light", "lively", "lucid", "lucky", "merry", "mild", "neat",
    "nimble", "noble", "patient", "plucky", "polite", "proud", "quick", "quiet", "ready", "rosy",
    "sandy", "silent", "silver", "smooth", "snug", "steady", "sunny", "swift", "tidy", "vivid",
    "warm", "wary", "wise", "witty",
)  # fmt: skip
_FISH = (
    "anchovy", "angler", "barbel", "bass", "bleak", "bream", "brill", "burbot", "carp", "catfish",
    "char", "chub", "cod", "conger", "dab", "dace", "dory", "eel", "flounder", "garfish",
    "goby", "grayling", "grouper", "gudgeon", "gurnard", "haddock", "hake", "halibut", "herring",
    "huchen", "ide", "lamprey", "ling", "loach", "mackerel", "marlin", "minnow", "mullet", "orfe",
    "perch", "pike", "plaice", "pollack", "ray", "roach", "rudd", "ruffe", "saithe", "salmon",
    "sardine", "shad", "skate", "smelt", "sole", "sprat", "stickleback", "sturgeon", "tench",
    "trout", "tuna", "turbot", "wels", "whiting", "zander",
)  # fmt: skip


def new_container_id() -> str:
    """64 random hexadecimal digits that are no number in their first twelve, as Docker's."""
    while True:
        identifier = secrets.token_hex(32)
        if not identifier[:12].isdigit():
            return identifier


def check_name(name: str) -> str:
    """A name as it is kept, without its slash. Raises: InvalidArgument."""
    bare = name.removeprefix("/")
    if not _NAME.fullmatch(bare):
        raise InvalidArgument(f"Invalid container name ({name}), only {RULE} are allowed")
    return bare


def invent(taken: Container[str]) -> str:
    """A name nobody has: a mood and a fish, in the end with a number."""
    name = ""
    for attempt in range(_ATTEMPTS):
        name = f"{secrets.choice(_MOODS)}_{secrets.choice(_FISH)}"
        if attempt:
            name += str(secrets.randbelow(10**attempt))
        if name not in taken:
            return name
    return f"{name}_{secrets.token_hex(4)}"


def conflict(name: str, owner: str) -> Refused:
    """The error of a name that is taken."""
    return Refused(
        409,
        f'Conflict. The container name "/{name}" is already in use by container "{owner}".'
        " You have to remove (or rename) that container to be able to reuse that name.",
    )


def find(ref: str, ids: Iterable[str], by_name: dict[str, str]) -> str:
    """The id that a full id, a name (with or without `/`) or a unique id prefix stands for.

    Raises: NotFound, InvalidArgument when a prefix stands for several.
    """
    known = ids if isinstance(ids, dict) else dict.fromkeys(ids)
    if ref in known:
        return ref
    named = by_name.get(ref.removeprefix("/"))
    if named is not None:
        return named
    found = [one for one in known if ref and one.startswith(ref)]
    if len(found) > 1:
        raise InvalidArgument(f"Multiple IDs found with provided prefix: {ref}")
    if not found:
        raise NotFound(f"No such container: {ref}")
    return found[0]
