"""What a Raft node is told once: who it is, its timing in ticks, its limits.

All members should use the same numbers. Ticks are the driver's: 100 ms in Shoal.
"""

from __future__ import annotations

import msgspec

from shoal.errors import InvalidArgument


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Validated when the node is made; ids are 1 to 2**64 - 1 and never used again."""

    id: int
    seed: int
    """Of the generator that spreads the election timeouts; different on every start."""
    election_ticks: int = 10
    """Ticks without a word from the leader before a campaign, and the length of a lease; the
    actual timeout is drawn from [election_ticks, 2 * election_ticks)."""
    heartbeat_ticks: int = 1
    message_bytes_max: int = 1 << 20
    """Entries in one APPEND; a single larger entry still goes, alone."""
    apply_bytes_max: int = 4 << 20
    """Committed entries in one Ready; at least one is always given."""
    inflight_messages_max: int = 256
    """APPENDs under way to one follower."""
    inflight_bytes_max: int = 16 << 20
    """The same in bytes; one message may exceed it."""
    uncommitted_bytes_max: int = 64 << 20
    """Data of proposals a leader holds uncommitted; more are dropped with ProposalDropped."""
    pending_reads_max: int = 4096
    """Reads a leader holds while their confirmation is under way."""
    pre_vote: bool = True
    """Ask before raising the term, so that a node that was cut off disturbs nobody on return."""
    check_quorum: bool = True
    """A leader that a majority does not hear steps down; a follower that hears its leader refuses
    to vote."""

    def validate(self) -> None:
        """Raises: InvalidArgument naming the field."""
        if not 0 < self.id < 1 << 64:
            raise InvalidArgument(f"raft id: {self.id} is not between 1 and 2**64 - 1")
        if self.heartbeat_ticks < 1:
            raise InvalidArgument(f"heartbeat_ticks: {self.heartbeat_ticks}, at least 1")
        if self.election_ticks <= self.heartbeat_ticks:
            raise InvalidArgument(
                f"election_ticks: {self.election_ticks} must be more than heartbeat_ticks"
                f" ({self.heartbeat_ticks}); 10 times as many is usual"
            )
        for field in (
            "message_bytes_max", "apply_bytes_max", "inflight_messages_max", "inflight_bytes_max",
            "uncommitted_bytes_max", "pending_reads_max",
        ):  # fmt: skip
            if getattr(self, field) < 1:
                raise InvalidArgument(f"{field}: {getattr(self, field)}, at least 1")
        if self.inflight_bytes_max < self.message_bytes_max:
            raise InvalidArgument(
                f"inflight_bytes_max: {self.inflight_bytes_max} is less than message_bytes_max"
                f" ({self.message_bytes_max}); one message must fit"
            )
