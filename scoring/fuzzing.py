"""Fuzzing: a judge reads the explanation and windows with marked tokens and says where the marks fit. (Paulo 2024, 4.2)

Positives are activating windows with their active tokens marked. Decoys carry the marks of a positive elsewhere: in
activating windows on tokens at which the latent is quiet (kind `moved`), and in non-activating windows (their own
kind), matched such that only reading tells them apart; see `scoring.decoys`. No window is shown twice.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from prompts.requests import Chat, Reply, Request
from scoring.decoys import MOVED, Decoy, Features, Matcher, active, mark
from scoring.judging import BALANCED, JudgeConfig, judge
from scoring.judging import needs as needs
from scoring.readings import Shown
from scoring.types import Metric, Outcome, Subject, Window

NAME, VERSION, WINDOWS, METRIC = "fuzzing", "2", "score", BALANCED
NEEDS: frozenset[type[Request]] = frozenset({Chat})
BY_READING = {"list": "fuzzing.v1", "probabilities": "fuzzing_one.v1"}
TEMPLATES = tuple(BY_READING.values())

CHOICE, ENOUGH = 3, 10
"""Non-activating windows of a kind of which one is used, if that leaves enough: matching needs a choice."""


@dataclass(frozen=True, kw_only=True)
class Config(JudgeConfig):
    windows: int = 50
    """Windows with true marks, if there are that many; each gives its marks to one decoy at most."""
    threshold: float = 0.3
    """A token is active above this share of the window's largest activation."""


@dataclass(frozen=True, slots=True)
class FuzzSet:
    """Windows of one latent with their marks."""

    positives: tuple[tuple[Window, tuple[int, ...]], ...]
    decoys: tuple[tuple[str, Decoy], ...]
    """With their kinds."""
    skipped: int
    """Donors whose marks fitted into no window that was left."""


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config, *,
    frequency: Mapping[int, float] | None = None,
) -> Generator[list[Request], Sequence[Reply], list[Outcome]]:  # fmt: skip
    """`frequency`: shares of the corpus by token id, to match decoys by; estimated from the windows without it."""
    fuzz = fuzz_set(windows, config, frequency)
    shown = [Shown(window, mark(window, places), True, window.kind) for window, places in fuzz.positives]
    shown += [Shown(decoy.window, mark(decoy.window, decoy.places), False, kind) for kind, decoy in fuzz.decoys]
    shown.sort(key=lambda each: (each.window.window_id, each.kind))
    random.Random(f"{config.seed}/{subjects[0].latent}").shuffle(shown)
    outcomes = yield from judge(subjects, shown, BY_READING, config)
    # How many donors there were is what it is a share of.
    n = fuzz.skipped + len(fuzz.decoys)
    skipped = Metric("skipped_decoys", float(fuzz.skipped), n, 0, None, None, "")
    return [replace(outcome, metrics=(*outcome.metrics, skipped)) for outcome in outcomes]


def fuzz_set(windows: Sequence[Window], config: Config, frequency: Mapping[int, float] | None = None) -> FuzzSet:
    """Positives and decoys of one latent.

    With k kinds of non-activating windows, activating ones are taken in strata of k + 3 windows of like strength. One
    of a stratum is the donor of a `moved` decoy; of the others the one with the best place for such marks takes them
    and the rest are positives too, donors of the other decoys in turn: all strengths contribute equally to each kind.
    """
    windows = [w for w in windows if w.tokens]
    firing = sorted((w for w in windows if w.activating), key=_strength)
    others: dict[str, list[Window]] = {}
    # An order of its own: decoys must not depend on the order in which windows come.
    for window in sorted((w for w in windows if not w.activating), key=lambda w: w.window_id):
        others.setdefault(window.kind, []).append(window)
    size = len(others) + 3
    n = min(len(firing), -(-config.windows * size // (size - 1)))
    used = [firing[(2 * i + 1) * len(firing) // (2 * n)] for i in range(n)]
    # The last stratum may have two windows only: one gives, one takes.
    strata = [used[i : i + size] for i in range(0, n, size) if n - i > 1]
    givers = [stratum[i % len(stratum)] for i, stratum in enumerate(strata)]
    takers = [[w for w in stratum if w is not giver] for stratum, giver in zip(strata, givers, strict=True)]
    features = Features(windows, frequency)
    found = Matcher(takers, features, config.threshold).match(givers)
    skipped = len(givers) - len(found)
    decoys = [(MOVED, decoy) for decoy in found]
    taken = {id(decoy.window) for decoy in found}
    positives = [w for w in used if id(w) not in taken]
    gave = {id(w) for w in givers}
    donors = [w for w in positives if id(w) not in gave]
    for i, kind in enumerate(sorted(others)):
        mine = donors[i :: len(others)]
        most = min(len(mine), max(len(others[kind]) // CHOICE, ENOUGH))
        mine = [mine[(2 * i + 1) * len(mine) // (2 * most)] for i in range(most)]
        found = Matcher([[w] for w in others[kind]], features, config.threshold).match(mine)
        skipped += len(mine) - len(found)
        decoys += [(kind, decoy) for decoy in found]
    return FuzzSet(tuple((w, active(w, config.threshold)) for w in positives), tuple(decoys), skipped)


def _strength(window: Window) -> tuple[float, str]:
    return max(map(abs, window.activations), default=0.0), window.window_id
