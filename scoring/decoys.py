"""Where to put marks: on tokens at which a latent is active, and on tokens that cannot be told from those unread.

A decoy carries the whole pattern of marks of one true window, its donor: as many tokens, in the same runs and with the
same gaps. Where it goes is chosen by matching. With `x` the features of a token (log-frequency, class, length of its
text) and `p` its position, the cost of putting the marks of donor `d` at places `q` of a window is

    sum over features of WEIGHT * mean over marks of |x(q) - x(d)|
    + costs of shift, window length and edges + CROWD * mean over marks of log(number of tokens like that at q)

and donors and windows are paired such that the sum of costs is least (an assignment problem). No draw is involved, so
that equal windows have equal decoys in whatever order they come. Our own design: Paulo et al. 2024 (4.2) put marks at
random, which makes decoys recognisable by what is marked.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from scoring.types import HARD, Window

Floats = NDArray[np.float64]

MOVED = "moved"
"""Kind of an activating window whose marks are on tokens at which the latent is quiet."""

NEVER = 1e6
"""Cost of what is not allowed."""

WEIGHTS = {
    "frequency": 1.2, "space": 1.5, "word": 1.5, "digit": 1.5, "capital": 2.0, "blank": 2.0, "length": 0.6,
}  # fmt: skip
"""Of the features of a marked token; log-frequencies are in nats."""
ORDER = ("space", "word", "digit", "capital", "blank", "length", "frequency")
COARSE = {"length": 3.0, "frequency": 1.5}
"""Tokens whose features agree up to this are alike."""
SPREAD, POSITION, EDGE, LENGTH, FAINT = 1.0, 1 / 24, 2.0, 1 / 4, 4.0
"""Cost of the largest and the least log-frequency of several marks (in proportion to the mean's), of a token's shift,
of being moved to or from an end of the window, of a token more or less in the window, and of a mark on a token that has
the whole of the window's largest activation (in proportion)."""

CROWD = 0.2
"""Cost of a mark on a token, per log of how many tokens are alike: what is nearest at hand is more often of a kind that
is everywhere, and decoys would pile up there. Larger values overshoot (`benchmarks/separability.py`)."""
FIRED, RANK = 0.5, 0.2
"""Where frequencies are estimated: what an occurrence counts at which the latent fires (the window is there because of
it), and the weight of the token's rank. Fitted on SmolLM2 latents in docstrings: no bias for tokens they fire on, and
a residual of 0.97 nats."""


@dataclass(frozen=True, slots=True)
class Decoy:
    """A window with marks at `places`, moved there from `donor`."""

    window: Window
    donor: Window
    places: tuple[int, ...]


def active(window: Window, threshold: float) -> tuple[int, ...]:
    """Positions whose |activation| is above `threshold` times the window's largest; the peak at least."""
    sizes = [abs(a) for a in window.activations]
    largest = max(sizes, default=0.0)
    return tuple(i for i, size in enumerate(sizes) if size > threshold * largest) or ((window.peak,) if sizes else ())


def mark(window: Window, places: Sequence[int]) -> str:
    """The window's text with each run of the tokens at `places` between << and >>.

    A << that the text itself contains is written <\\<, so that only marks look like marks.
    """
    out: list[str] = []
    at = set(places)
    for i, piece in enumerate(window.pieces):
        if (i in at) != (i - 1 in at):
            # Noncharacters stand for marks until the text's own << are escaped, which may span pieces.
            out.append("\ufdd0" if i in at else "\ufdd1")
        out.append(piece.replace("\ufdd0", "").replace("\ufdd1", ""))
    if len(window.pieces) - 1 in at:
        out.append("\ufdd1")
    text = "".join(out).replace("<<", "<\\<")
    return text.replace("\ufdd0", "<<").replace("\ufdd1", ">>")


class Features:
    """Features of tokens, `[n, feature]`, times their weights.

    Log-frequency is that of `frequency` (share of the corpus by token id) where it is given. Otherwise it is taken from
    how often a token is seen in the windows at hand, and from its rank: tokenizers number tokens roughly from frequent
    to rare, and these windows alone are a sample too small and too much about one latent.
    """

    def __init__(self, windows: Sequence[Window], frequency: Mapping[int, float] | None = None) -> None:
        self._seen: Counter[int] = Counter()
        fired = {token for w in windows for token, a in zip(w.tokens, w.activations, strict=True) if a != 0}
        for window in windows:
            hard = window.kind.startswith(HARD)
            for token, activation in zip(window.tokens, window.activations, strict=True):
                # Hard windows may have been chosen because they hold what the latent fires on.
                if not (hard and token in fired):
                    self._seen[token] += 1 if activation == 0 else FIRED  # type: ignore[assignment]
        self._frequency = frequency
        self._rarest = min((f for f in (frequency or {}).values() if f > 0), default=1.0) / 2
        self._total = max(sum(self._seen.values()), 1)
        self._known: dict[tuple[int, str], list[float]] = {}
        self._coarse = np.array([WEIGHTS[name] * COARSE.get(name, 1.0) for name in ORDER])

        # How many tokens at hand are alike: of the same class, within a nat or two of frequency, and about as long.
        self._alike: Counter[tuple[int, ...]] = Counter()
        for window in windows:
            self._alike.update(self._cells(window))

    def crowd(self, window: Window) -> Floats:
        """Log of how many tokens of all windows are like each of this one's, `[n]`."""
        return np.log([self._alike[cell] + 1.0 for cell in self._cells(window)])

    def _cells(self, window: Window) -> list[tuple[int, ...]]:
        coarse = np.floor(self.of(window) / self._coarse).astype(np.int64)
        return [tuple(row) for row in coarse.tolist()]

    def of(self, window: Window) -> Floats:
        keys = list(zip(window.tokens, window.pieces, strict=True))
        for key in keys:
            if key not in self._known:
                self._known[key] = self._token(*key)
        return np.array([self._known[key] for key in keys]).reshape(-1, len(ORDER))

    def _token(self, token: int, piece: str) -> list[float]:
        bare = piece.strip()
        values: dict[str, float] = {
            "space": piece[:1] == " ",
            "word": any(c.isalpha() for c in bare),
            "digit": any(c.isdigit() for c in bare),
            "capital": bare[:1].isupper(),
            "blank": not bare,
            "length": min(len(bare), 10),
        }
        if self._frequency is None:
            share = ((self._seen[token] + 0.5) / self._total) ** (1 - RANK) * (1 / (max(token, 0) + 32)) ** RANK
        else:
            share = max(self._frequency.get(token, 0.0), self._rarest)
        values["frequency"] = math.log(share)
        return [WEIGHTS[name] * values[name] for name in ORDER]


class Matcher:
    """The windows decoys may be put in, laid side by side so that one donor is held against all of them at once.

    Windows come in groups, of each of which one may be taken.
    """

    def __init__(self, groups: Sequence[Sequence[Window]], features: Features, threshold: float) -> None:
        self.windows = [window for group in groups for window in group]
        ends = np.cumsum([len(group) for group in groups], dtype=np.int64)
        self._groups = [np.arange(end - len(group), end) for end, group in zip(ends, groups, strict=True) if group]
        self.features = features
        self.threshold = threshold
        n, longest = len(self.windows), max((len(w.tokens) for w in self.windows), default=0)
        self.lengths = np.array([len(w.tokens) for w in self.windows], dtype=np.int64)
        self._x: Floats = np.zeros((n, longest, len(ORDER)))
        self._faint: Floats = np.full((n, longest), NEVER)
        for i, window in enumerate(self.windows):
            length = len(window.tokens)
            if not length:
                continue
            self._x[i, :length] = features.of(window)
            sizes = np.abs(np.array(window.activations))
            share = sizes / (sizes.max() or 1.0)
            # A faint activation is no wrong place for a mark, nor a right one: only where there is no other.
            self._faint[i, :length] = np.where(share > threshold, NEVER, FAINT * share)
            self._faint[i, :length] += CROWD * features.crowd(window)
            if window.activating:
                self._faint[i, list(active(window, threshold))] = NEVER

    def costs(self, donor: Window) -> tuple[Floats, NDArray[np.int64]]:
        """Least cost of the donor's marks in each window and the shift (place of the first mark) it is reached at."""
        places = np.array(active(donor, self.threshold))
        offsets, first, span = places - places[0], int(places[0]), int(places[-1] - places[0]) + 1
        n, longest = self._faint.shape
        n_shifts = longest - span + 1
        if n_shifts < 1:
            return np.full(n, NEVER), np.zeros(n, dtype=np.int64)
        at = np.arange(n_shifts)[:, None] + offsets
        mine = self.features.of(donor)[places]
        cost: Floats = np.abs(self._x[:, at] - mine).sum(axis=3).mean(axis=2) + self._faint[:, at].mean(axis=2)
        if len(places) > 1:
            # Tokens that are active together are often alike, which means over marks do not show.
            rare, my_rare = self._x[:, at, -1], mine[:, -1]
            cost += SPREAD * (np.abs(rare.max(2) - my_rare.max()) + np.abs(rare.min(2) - my_rare.min()))
        shift, length = np.arange(n_shifts), len(donor.tokens)
        cost += POSITION * np.abs(shift - first)
        cost += EDGE * ((shift == 0) != (first == 0))
        at_end = shift[None, :] + span == self.lengths[:, None]
        cost += EDGE * (at_end != (first + span == length))
        cost += LENGTH * np.abs(self.lengths - length)[:, None]
        best = cost.argmin(axis=1)
        return cost[np.arange(n), best], best

    def match(self, donors: Sequence[Window]) -> list[Decoy]:
        """A decoy for each donor for which there is a window, no window twice; in the donors' order.

        Of each of the `groups` one window is taken at most.
        """
        if not (donors and self.windows):
            return []
        found = [self.costs(donor) for donor in donors]
        costs = np.array([cost for cost, _ in found])
        # The cheapest window of every group for every donor.
        best = np.array(
            [[group[i] for group in self._groups for i in [costs[d, group].argmin()]] for d in range(len(donors))]
        )
        reduced = np.take_along_axis(costs, best, axis=1)
        decoys = []
        for d, g in zip(*linear_sum_assignment(reduced), strict=True):
            places = np.array(active(donors[d], self.threshold))
            # A place that is not allowed adds at least NEVER, shared among the marks.
            if reduced[d, g] < NEVER / (2 * len(places)):
                w = int(best[d, g])
                moved = places - places[0] + found[d][1][w]
                decoys.append(Decoy(self.windows[w], donors[d], tuple(moved.tolist())))
        return decoys
