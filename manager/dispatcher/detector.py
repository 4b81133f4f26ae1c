"""Whether a node is alive, judged by its heartbeats alone: an accrual detector with bounds.

Suspicion grows with the time since the last beat and is 1 when that reaches the tolerance: the
period plus four times the longest delay among the last beats, within bounds. The longest delay,
not mean and deviation: delays of a busy machine have a long tail, of which a normal distribution
knows nothing, and one outlier among a hundred beats hardly moves a deviation. So a node that beat
regularly is known dead soon, and one under load is given time.

Invariants: between two events suspicion never falls; the tolerance stays within the bounds; what
is remembered is bounded. A closed connection never is a verdict: it shortens the wait of a node
whose delays had made it long, and no more.
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from shoal.model.row import Row

HISTORY_MAX = 100
"""Beats whose delays count: 25 s at the shortest period."""
MARGIN = 4.0
"""How often the longest delay is tolerated, on top of the period."""
MISSED_BEATS_MIN = 4
"""Beats that must be missed at least, whatever the period."""
REGULAR_AFTER = 8
"""Beats after which a session's delays are believed to say something."""
SUSPECT_AT = 0.5
LATE_OWES_BEATS = 3
"""Regular beats until a node that was late is trusted again."""
FLAP_WINDOW_S = 300.0
FAILURES_MAX = 6
"""Failures remembered within that window."""
PROBATION_S = 5.0
"""How long a node beats before it is trusted again after its second failure; doubles with each."""


class Verdict(Enum):
    """SUSPECT: late, or not trusted again yet."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"


class Bounds(Row, frozen=True):
    """Limits of the tolerance, seconds. fresh_s: least while too little is known of a session."""

    least_s: float = 1.75
    most_s: float = 8.0
    fresh_s: float = 4.0


class Detector:
    """One node's beats. Times are seconds on a clock that never goes back."""

    def __init__(self, *, period_s: float, bounds: Bounds | None = None) -> None:
        """period_s: how often it is to beat."""
        self._period_s = self._due_s = period_s
        self._bounds = bounds or Bounds()
        self._delays: deque[float] = deque(maxlen=HISTORY_MAX)
        self._failures: deque[float] = deque(maxlen=FAILURES_MAX)
        self._last_s = 0.0
        self._beats = 0
        self._owed_s = 0.0
        self._tolerance_s = self._tolerated_s()

    @property
    def period_s(self) -> float:
        """How often it is to beat; may be set at any time.

        The node hears of it with the answer to its last beat, and may sleep for the period of
        before by then: the next beat is due after the longer one of the two.
        """
        return self._period_s

    @period_s.setter
    def period_s(self, period_s: float) -> None:
        if period_s != self._period_s:
            self._due_s = max(self._due_s, period_s)
            self._period_s = period_s
            self._tolerance_s = self._tolerated_s()

    @property
    def tolerance_s(self) -> float:
        """Silence after which the node is dead, seconds."""
        return self._tolerance_s

    def begin(self, now_s: float) -> None:
        """A session of the node opens, which is its first beat.

        After more than one failure within five minutes it has to beat for a while to be trusted.
        """
        recent = sum(now_s - failed_s < FLAP_WINDOW_S for failed_s in self._failures)
        self._owed_s = PROBATION_S * 2.0 ** (recent - 2) if recent > 1 else 0.0
        self._last_s = now_s
        self._beats = 0
        self._due_s = self._period_s
        self._tolerance_s = self._tolerated_s()

    def beat(self, now_s: float) -> None:
        """A beat has come."""
        interval_s = max(now_s - self._last_s, 0.0)
        if self.suspicion(now_s) >= SUSPECT_AT:
            self._owed_s = max(self._owed_s, LATE_OWES_BEATS * self.period_s)
        else:
            self._owed_s = max(self._owed_s - interval_s, 0.0)
        self._delays.append(max(interval_s - self._due_s, 0.0))
        self._due_s = self._period_s
        self._beats += 1
        self._last_s = max(now_s, self._last_s)
        self._tolerance_s = self._tolerated_s()

    def disconnect(self) -> None:
        """The connection was closed: what was granted beyond the least is halved until a beat."""
        self._tolerance_s = max(self._least_s, self._tolerance_s / 2)

    def fail(self, now_s: float) -> None:
        """The node was called dead."""
        self._failures.append(now_s)

    def postpone(self, by_s: float) -> None:
        """Nobody could be heard for that long."""
        self._last_s += by_s

    def suspicion(self, now_s: float) -> float:
        """From 0, just heard, to 1 and above, dead."""
        return max(now_s - self._last_s, 0.0) / self._tolerance_s

    def verdict(self, now_s: float) -> Verdict:
        """What to think of the node now."""
        if now_s >= self.next_wakeup():
            return Verdict.DEAD
        if self._owed_s > 0 or self.suspicion(now_s) >= SUSPECT_AT:
            return Verdict.SUSPECT
        return Verdict.ALIVE

    def next_wakeup(self) -> float:
        """When the node is dead unless it is heard."""
        return self._last_s + self._tolerance_s

    @property
    def _least_s(self) -> float:
        return max(self._bounds.least_s, MISSED_BEATS_MIN * self._due_s)

    def _tolerated_s(self) -> float:
        least_s = self._least_s
        if self._beats < REGULAR_AFTER:
            least_s = max(least_s, self._bounds.fresh_s)
        wanted_s = self._due_s + MARGIN * max(self._delays, default=0.0)
        return min(max(wanted_s, least_s), max(self._bounds.most_s, least_s))
