"""The one refusal that is Raft's own; all else is an error of `shoal.errors`."""

from __future__ import annotations

from shoal.errors import Unavailable


class ProposalDropped(Unavailable):
    """The proposal was not taken and will not be committed; trying again later may help.

    Raised where the proposal was made. One that was forwarded to a leader and dropped there is
    not answered at all: its fate is unknown to the proposer, as after a lost connection.
    """
