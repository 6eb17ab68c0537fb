"""Where marks go: true ones on active tokens, decoys' in the same pattern on quiet tokens that look alike."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from scoring.decoys import MOVED, Features, Matcher, active, mark
from scoring.fuzzing import Config, FuzzSet, fuzz_set
from scoring.types import ACTIVATING, RANDOM, Window

WORDS = [" the", " of", " cat", " Dog", "ing", ",", ".", " 7", "12", "\n", " river", " Stone", "(", " a", "Foo"]


def text(i: int, kind: str, rng: random.Random, length: int = 24, marks: int | None = None) -> Window:
    """A window of words at random; where it activates, one to three tokens fire and some are faint."""
    tokens = tuple(rng.randrange(len(WORDS)) for _ in range(length))
    activations = [0.0] * length
    if kind == ACTIVATING:
        for k, at in enumerate(rng.sample(range(length), marks or rng.randint(1, 3))):
            activations[at] = (1 + i) * (1 if k == 0 else 0.6)
        quiet = [at for at in range(length) if not activations[at]]
        for at in rng.sample(quiet, min(2, len(quiet))):
            activations[at] = 0.1 * (1 + i)
    return Window(
        f"w{i:03}", i, 100 * i, kind, tuple(WORDS[t] for t in tokens), tokens, tuple(activations), quantile=None
    )


def corpus(n: int = 60, kinds: tuple[str, ...] = (RANDOM,), each: int = 50, seed: int = 0) -> list[Window]:
    rng = random.Random(seed)
    some = [text(i, ACTIVATING, rng) for i in range(n)]
    for k, kind in enumerate(kinds):
        some += [text(n + each * k + i, kind, rng) for i in range(each)]
    return some


def summary(fuzz: FuzzSet) -> list[tuple[str, str, tuple[int, ...]]]:
    found = [(w.window_id, w.kind, places) for w, places in fuzz.positives]
    return found + [(decoy.window.window_id, kind, decoy.places) for kind, decoy in fuzz.decoys]


def relative(places: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(place - places[0] for place in places)


@pytest.mark.parametrize(
    ("activations", "expected"),
    [
        ((0.0, 1.0, 0.31, 0.3, 0.0), (1, 2)),
        ((0.0, -1.0, 0.4, 0.2, 0.0), (1, 2)),
        ((0.0, 0.0, 5.0, 0.0, 0.0), (2,)),
        ((0.0, 0.0, 0.0, 0.0, 0.0), (0,)),
    ],
)
def test_active_tokens(activations: tuple[float, ...], expected: tuple[int, ...]) -> None:
    window = Window("w", 0, 0, ACTIVATING, ("a",) * 5, (0,) * 5, activations)
    assert active(window, 0.3) == expected


@pytest.mark.parametrize(
    ("pieces", "places", "expected"),
    [
        (("a", " b", " c"), (1,), "a<< b>> c"),
        (("a", " b", " c"), (1, 2), "a<< b c>>"),
        (("a", " b", " c"), (0, 2), "<<a>> b<< c>>"),
        (("<<cat>>", " b"), (1,), "<\\<cat>><< b>>"),
        (("<", "<", "b"), (2,), "<\\<<<b>>"),
        (("\ufdd0a", "b"), (1,), "a<<b>>"),
        ((">>>", " x"), (0,), "<<>>>>> x"),
    ],
)
def test_marks_in_the_text(pieces: tuple[str, ...], places: tuple[int, ...], expected: str) -> None:
    n = len(pieces)
    assert mark(Window("w", 0, 0, RANDOM, pieces, tuple(range(n)), (0.0,) * n), places) == expected


@pytest.mark.parametrize("kinds", [(), (RANDOM,), (RANDOM, "hard:cofiring", "hard:same_token")])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7])
def test_decoys_carry_a_whole_pattern_on_quiet_tokens(kinds: tuple[str, ...], threshold: float) -> None:
    fuzz = fuzz_set(corpus(kinds=kinds), Config(threshold=threshold))
    assert {kind for kind, _ in fuzz.decoys} == {MOVED, *kinds} and fuzz.skipped == 0
    donors = {w.window_id: places for w, places in fuzz.positives}
    for kind, decoy in fuzz.decoys:
        assert relative(decoy.places) == relative(donors[decoy.donor.window_id])
        assert decoy.window.kind == (ACTIVATING if kind == MOVED else kind)
        assert decoy.places[0] >= 0 and decoy.places[-1] < len(decoy.window.tokens)
        largest = max(map(abs, decoy.window.activations))
        for place in decoy.places:
            assert abs(decoy.window.activations[place]) <= threshold * largest
    for window, places in fuzz.positives:
        assert places == active(window, threshold)


def test_no_window_and_no_donor_is_used_twice() -> None:
    fuzz = fuzz_set(corpus(kinds=(RANDOM, "hard:decoder")), Config())
    assert max(Counter(name for name, *_ in summary(fuzz)).values()) == 1
    assert max(Counter(decoy.donor.window_id for _, decoy in fuzz.decoys).values()) == 1


def test_the_order_of_windows_does_not_matter() -> None:
    some = corpus()
    first = summary(fuzz_set(some, Config()))
    for seed in range(3):
        shuffled = some.copy()
        random.Random(seed).shuffle(shuffled)
        assert summary(fuzz_set(shuffled, Config())) == first


def test_every_decile_contributes_equally() -> None:
    some = corpus(200, each=100)
    fuzz = fuzz_set(some, Config(windows=75))
    deciles = Counter(int(w.window_id[1:]) // 20 for w, _ in fuzz.positives)
    moved = Counter(int(d.window.window_id[1:]) // 20 for kind, d in fuzz.decoys if kind == MOVED)
    donors = Counter(int(d.donor.window_id[1:]) // 20 for _, d in fuzz.decoys)
    for counts in (deciles, moved, donors):
        assert set(counts) == set(range(10)) and max(counts.values()) - min(counts.values()) <= 2
    assert len(fuzz.positives) == 75


def test_decoys_are_put_on_the_like_of_what_is_marked() -> None:
    """The latent fires on one word with a capital; decoys go to other capital words where there are some."""
    rng = random.Random(1)
    some = []
    for i in range(60):
        window = text(i, RANDOM, rng)
        tokens, activations = list(window.tokens), [0.0] * 24
        tokens = [WORDS.index(" river") if t == WORDS.index(" Dog") else t for t in tokens]
        if i < 40:
            tokens[i % 24], activations[i % 24] = WORDS.index(" Dog"), 1.0 + i
        some.append(replace(
            window, kind=ACTIVATING if i < 40 else RANDOM, tokens=tuple(tokens), activations=tuple(activations),
            pieces=tuple(WORDS[t] for t in tokens), text="",
        ))  # fmt: skip
    fuzz = fuzz_set(some, Config())
    marked = Counter(decoy.window.pieces[place] for _, decoy in fuzz.decoys for place in decoy.places)
    assert marked[" Stone"] >= 0.8 * marked.total()


def test_a_given_frequency_decides() -> None:
    """Two words of one class, as often in the windows as each other, of which the corpus has one often."""
    words = ("  xx", "  yy", "  zz")
    some = []
    for i in range(40):
        tokens = (0, 1, 2) if i % 2 else (0, 2, 1)
        fires = (1.0 + i, 0.0, 0.0) if i < 20 else (0.0,) * 3
        kind = ACTIVATING if i < 20 else RANDOM
        some.append(Window(f"w{i:02}", i, i, kind, tuple(words[t] for t in tokens), tokens, fires))
    for rare, other in ((1, 2), (2, 1)):
        fuzz = fuzz_set(some, Config(), {0: 1e-5, rare: 1e-5, other: 1e-1})
        marked = Counter(decoy.window.tokens[place] for kind, decoy in fuzz.decoys if kind == MOVED
                         for place in decoy.places)  # fmt: skip
        assert set(marked) == {rare}


def test_windows_without_quiet_tokens_are_skipped_and_counted() -> None:
    rng = random.Random(0)
    dense = [replace(text(i, ACTIVATING, rng), activations=(1.0 + i,) * 24) for i in range(20)]
    fuzz = fuzz_set([*dense, *(text(20 + i, RANDOM, rng) for i in range(20))], Config())
    assert {kind for kind, _ in fuzz.decoys} == {RANDOM} and fuzz.skipped > 0
    assert len(fuzz.positives) == 20, "what took no marks keeps its own"
    short = [text(20 + i, RANDOM, rng, length=8) for i in range(20)]
    fuzz = fuzz_set([*dense, *short], Config())
    assert not fuzz.decoys and fuzz.skipped > 0


@pytest.mark.parametrize(("n", "m"), [(0, 0), (1, 0), (0, 3), (1, 1), (2, 0), (2, 1), (5, 1), (7, 9)])
def test_few_windows(n: int, m: int) -> None:
    rng = random.Random(0)
    some = [text(i, ACTIVATING, rng) for i in range(n)] + [text(n + i, RANDOM, rng) for i in range(m)]
    fuzz = fuzz_set(some, Config())
    moved = sum(kind == MOVED for kind, _ in fuzz.decoys)
    assert len(fuzz.positives) + moved == n
    assert fuzz_set([replace(w, pieces=(), tokens=(), activations=()) for w in some], Config()).decoys == ()


def test_faint_tokens_are_avoided() -> None:
    """Of two like tokens, one of which the latent is faint on, the quiet one is marked."""
    donor = Window("d", 0, 0, ACTIVATING, ("x", "x", "x"), (5, 5, 5), (0.0, 1.0, 0.0))
    host = Window("h", 0, 0, ACTIVATING, ("x", "x", "x", "y"), (5, 5, 5, 6), (0.0, 0.2, 0.0, 1.0))
    features = Features([donor, host])
    (decoy,) = Matcher([[host]], features, 0.3).match([donor])
    assert decoy.places != (1,) and np.isfinite(Matcher([[host]], features, 0.3).costs(donor)[0]).all()
