"""The fluidity-index of one sequence of tokens, computed while the tokens arrive.

Metron (arXiv 2407.07000, algorithm with the carried slack in arXiv 2507.09019): a token that comes
before its deadline leaves its slack to the next; one that comes late misses every deadline that passed
while it was waited for, and deadlines start afresh from it.

In closed form, with arrivals ``a[j]``, ``u[j] = a[j] - j*Dd`` and ``peak`` the larger of ``Dp`` and all
earlier ``u``: token j is late exactly when ``u[j] > peak``; it then missed ``(u[j] - peak) // Dd + 1``.
Here the same is kept as ``due_ns = peak + j*Dd``, the moment at which the next token is due, so that a
token on time costs one comparison and two additions.

Standard library only: this module runs in the process that carries the streams.
"""

from __future__ import annotations


class FluidityScorer:
    """Scores one choice of one request online.  All times are integer nanoseconds since t = 0.

    ``tokens`` that arrived, of these ``late`` ones by ``late_ns`` in sum; ``missed`` deadlines.  ``due_ns``
    is when the next token is due; it is public so that a caller can compare before it calls.  Times need
    not be checked here: ``ttft_ns`` >= 0, ``tbt_ns`` >= 1 and arrivals in order are the caller's promise
    (``Deadlines`` checks the first two).
    """

    __slots__ = ("censored", "due_ns", "finished", "late", "late_ns", "missed", "tbt_ns", "tokens", "ttft_ns")

    def __init__(self, ttft_ns: int, tbt_ns: int) -> None:
        self.ttft_ns = ttft_ns
        self.tbt_ns = tbt_ns
        self.due_ns = ttft_ns
        self.tokens = 0
        self.late = 0
        self.late_ns = 0
        self.missed = 0
        self.finished = False
        self.censored = False

    def arrive(self, at_ns: int, tokens: int = 1) -> int:
        """Count ``tokens`` that arrived together; returns the deadlines that the first of them missed.

        Only the first can be late: the rest have at least the slack of one deadline each.
        """
        due_ns = self.due_ns
        if at_ns <= due_ns:
            self.due_ns = due_ns + tokens * self.tbt_ns
            self.tokens += tokens
            return 0
        return self._arrive_late(at_ns, tokens)

    def _arrive_late(self, at_ns: int, tokens: int) -> int:
        if tokens <= 0:  # an event without a token keeps nobody's deadline
            return 0
        late_ns = at_ns - self.due_ns
        missed = late_ns // self.tbt_ns + 1
        self.missed += missed
        self.late += 1
        self.late_ns += late_ns
        self.tokens += tokens
        self.due_ns = at_ns + tokens * self.tbt_ns
        return missed

    def next_deadline_ns(self) -> int:
        """When the next token is due."""
        return self.due_ns

    def overdue_ns(self, now_ns: int) -> int:
        """How long the next token has been overdue; <= 0 where it is not, or where none is awaited."""
        return -1 if self.finished else now_ns - self.due_ns

    def missed_by(self, now_ns: int) -> int:
        """Deadlines missed so far, those included that have passed for the token awaited now."""
        overdue_ns = self.overdue_ns(now_ns)
        return self.missed + (overdue_ns // self.tbt_ns + 1 if overdue_ns > 0 else 0)

    def finish(self, end_ns: int | None) -> None:
        """No further token is awaited.  The first call counts, later ones change nothing.

        ``None``: the sequence ended as it should.  Otherwise it was cut at ``end_ns`` while a token was
        due (a censored end): the deadlines that had passed by then are missed.
        """
        if self.finished:
            return
        if end_ns is not None:
            self.missed = self.missed_by(end_ns)
            self.late_ns += max(0, end_ns - self.due_ns)
            self.censored = True
        self.finished = True

    @property
    def met(self) -> int:
        """Deadlines met: tokens that were not late."""
        return self.tokens - self.late

    @property
    def peak_ns(self) -> int:
        """The closed form's running maximum: the larger of ``Dp`` and every ``a[j] - j*Dd`` so far."""
        return self.due_ns - self.tokens * self.tbt_ns

    @property
    def fluidity(self) -> float | None:
        """met / (met + missed); ``None`` while no deadline has been met or missed."""
        total = self.tokens - self.late + self.missed
        return (self.tokens - self.late) / total if total else None
