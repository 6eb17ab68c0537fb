"""Sequential scoring: a latent's windows are judged in rounds until its interval is narrow enough.

The interval is a confidence sequence: with probability 95% it holds the true balanced accuracy after every round at
once, so that one may look after each and stop when one likes. It costs windows: an interval of one width takes about
twice as many as one whose number of windows was fixed beforehand.

Windows come in pairs, one activating and one not. For a candidate value m of the balanced accuracy, each pair is a
bet against m. With hits x and y (1 where the judge is right), it pays

    e = (q/t)^x ((1-q)/(1-t))^(1-x) * (r/u)^y ((1-r)/(1-u))^(1-y)

where (q, r) is a guess of the two rates with mean m + c h or m - c h, made before the pair, and (t, u) is the point
with (t + u) / 2 = m that is nearest to (q, r) in relative entropy. This is Turner, Ly and Grünwald's e-variable for
two streams (arXiv 2106.02693, Theorem 1; for bounds on an effect: Turner and Grünwald, arXiv 2203.09785). That it is
fair can be seen directly: if the rates are t + d and u - d, its mean is (1 + A d)(1 - B d) with A = (q-t) / (t(1-t))
and B = (r-u) / (u(1-u)); being nearest means A = B; hence the mean is 1 - (A d)^2 <= 1, whatever d. So the product
over pairs is a supermartingale, the mean of the products for the two sides is one too, and by Ville's inequality it
ever reaches 20 with probability 5% at most if m is the truth. The interval holds the m at which it has not.

The windows have to come in random order: were the strongest activations judged first, the rates would drift, and the
interval would hold for those judged rather than for all.

Any guess is valid. The mean lies c h off m because a bet on that distance h is the one that decides soonest between
values h apart; c = 1.2 was found by simulation. The guessed difference q - r is that seen in earlier pairs: a judge
that nearly always says yes has one rate near 1 and one near 0, both with little variance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from scoring.intervals import CONFIDENCE

Array = NDArray[np.float64]
GRID = 500
"""Candidate values lie 1/500 apart; the bounds are rounded outwards to them."""
SHIFT = 1.2
DIFFERENCES = 20
"""Guessed differences of the two rates are multiples of 1/20, so that the tables of bets can be kept."""
CHUNK = 5
"""Pairs after which the guessed difference is brought up to date, also within a round."""


class ConfidenceSequence:
    """Interval of a balanced accuracy that holds at all times at once.

    `half_width` is what the bets are tuned for (a share, 0.1 = ten points), and where `narrow` becomes true; the
    interval holds whatever it is. Pairs are taken as independent, each with the same two rates, and in the order
    in which they came: choosing an order after seeing the answers would break the guarantee.
    """

    METHOD = "confidence_sequence"

    def __init__(self, half_width: float = 0.1, confidence: float = CONFIDENCE) -> None:
        if not 0 < half_width < 0.5 or not 0 < confidence < 1:
            raise ValueError("half_width lies between 0 and 0.5, confidence between 0 and 1")
        self.half_width = half_width
        self.low, self.high = 0.0, 1.0
        self.n = 0
        """Pairs so far."""
        self._hits = (0, 0)
        self._reject = math.log(2 / (1 - confidence))  # of the sum of both sides, hence the 2
        self._capital: tuple[Array, Array] = (np.zeros(GRID - 1), np.zeros(GRID - 1))

    def update(self, pairs: Iterable[tuple[bool, bool]]) -> None:
        """Take a round's pairs: (right on an activating window, right on another one)."""
        rows = [(bool(a), bool(b)) for a, b in pairs]
        for i in range(0, len(rows), CHUNK):
            self._bet(rows[i : i + CHUNK])
        up, down = self._capital
        kept = np.flatnonzero(np.logaddexp(up, down) < self._reject)
        if not len(kept):
            return
        # Candidate i is (i + 1) / GRID. The bound is the rejected neighbour of the last one kept.
        low, high = max(self.low, float(kept[0]) / GRID), min(self.high, float(kept[-1] + 2) / GRID)
        # All earlier intervals hold as well. If they contradict each other, one of the 5% has come, and the last stays.
        if low < high:
            self.low, self.high = low, high

    def _bet(self, rows: Sequence[tuple[bool, bool]]) -> None:
        k, a, b = len(rows), sum(row[0] for row in rows), sum(row[1] for row in rows)
        # Four made-up pairs without a difference keep the first guesses from the extremes.
        difference = round(DIFFERENCES * (self._hits[0] - self._hits[1]) / (self.n + 4))
        up, down = (
            capital + a * bet[0] + (k - a) * bet[1] + b * bet[2] + (k - b) * bet[3]
            for capital, bet in zip(self._capital, _bets(self.half_width, difference), strict=True)
        )
        self._capital = (up, down)
        self.n += k
        self._hits = (self._hits[0] + a, self._hits[1] + b)

    @property
    def narrow(self) -> bool:
        """Whether the interval is as narrow as was asked for."""
        return self.high - self.low <= 2 * self.half_width + 1e-9

    @property
    def value(self) -> float | None:
        """Balanced accuracy of the pairs so far, moved into the interval in the rare case that it lies outside."""
        return min(max(sum(self._hits) / (2 * self.n), self.low), self.high) if self.n else None


@lru_cache(maxsize=256)
def _bets(half_width: float, difference: int) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Log-payoffs of (right, wrong) on either kind of window at each candidate, for bets that m is more, and less."""
    m = np.arange(1, GRID) / GRID
    sides = []
    for shift in (SHIFT * half_width, -SHIFT * half_width):
        # Not nearer to 0 or 1 than half way, so that no single answer takes all.
        mean = np.clip(m + shift, m / 2, (1 + m) / 2)
        room = 0.98 * np.minimum(mean, 1 - mean)
        gap = np.clip(difference / DIFFERENCES / 2, -room, room)
        q, r = mean + gap, mean - gap
        t = _nearest(m, q, r)
        u = 2 * m - t
        sides.append((np.log(q / t), np.log((1 - q) / (1 - t)), np.log(r / u), np.log((1 - r) / (1 - u))))
    return sides[0], sides[1]


def _nearest(m: Array, q: Array, r: Array) -> Array:
    """The t with (q-t) / (t(1-t)) = (r-u) / (u(1-u)) and u = 2m - t, by bisection: the left side falls in t."""
    low, high = np.maximum(0.0, 2 * m - 1), np.minimum(1.0, 2 * m)
    for _ in range(60):
        t = (low + high) / 2
        u = 2 * m - t
        too_high = (q - t) * u * (1 - u) < (r - u) * t * (1 - t)
        low, high = np.where(too_high, low, t), np.where(too_high, t, high)
    return np.asarray((low + high) / 2)
