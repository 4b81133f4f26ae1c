"""Leadership transfer: bring the chosen voter up to date, then tell it to campaign at once.

While it is under way the leader takes no proposals. It is given up after an election timeout, or
when the membership loses the chosen one. Source: Raft thesis §3.10.
"""

from __future__ import annotations

from manager.raft.core import Core, Leadership
from manager.raft.messages import Message, MessageKind
from manager.raft.replication import send_append
from shoal.errors import FailedPrecondition


def begin_transfer(core: Core, leading: Leadership, to: int) -> None:
    """Begin to hand over to `to`; a transfer to another one under way is given up.

    Raises: FailedPrecondition when `to` cannot lead.
    """
    if to not in core.membership.all_voters:
        why = "is a learner" if to in core.membership.learners else "is no member"
        raise FailedPrecondition(f"leadership transfer: node {to} {why}; choose a voter")
    if to in (core.id, leading.transferee):
        return
    leading.transferee = to
    core.election_elapsed = 0
    progress = leading.progress[to]
    if progress.match == core.log.last_index:
        hand_over(core, to)
    else:
        progress.paused = False
        send_append(core, to, progress)


def hand_over(core: Core, to: int) -> None:
    """The chosen one has everything: it shall campaign without asking first."""
    core.send(Message(kind=MessageKind.TIMEOUT_NOW, to=to, sender=core.id, term=core.term))
