"""Similarity of dictionaries: planted permutations, unrelated dictionaries, layers in a chain, large ones."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from autointerp.errors import UserError
from autointerp.stats import layers_apart, matching
from autointerp.stats.layers_apart import by_distance
from autointerp.stats.matching import Directions, match, unit
from autointerp.stats.similarity import measure, shuffled, similarity, unrelated


def directions(
    rng: np.random.Generator, n: int, d: int, scale: np.ndarray | float = 1.0, mean: float = 0.0
) -> Directions:
    return unit(rng.normal(size=(n, d)) * scale + mean)[0]


def noised(rng: np.random.Generator, rows: np.ndarray, noise: float) -> Directions:
    """Noise of this length relative to the rows' own: matched cosines are 1 / sqrt(1 + noise^2)."""
    return unit(rows + noise * rng.normal(size=rows.shape) / np.sqrt(rows.shape[1]))[0]


@pytest.mark.parametrize("method", ["exact", "greedy"])
def test_a_planted_permutation_is_recovered_with_the_similarity_that_its_noise_implies(method: str) -> None:
    rng = np.random.default_rng(0)
    a = directions(rng, 400, 128)
    order = rng.permutation(400)
    b = noised(rng, a[order], 0.5)
    found = match(a, b, method)
    assert np.array_equal(order[found.rows_b], found.rows_a)
    row = similarity(a, b, rng=rng, method=method)
    implied = 1 / np.sqrt(1 + 0.5**2)
    assert row["value"] == pytest.approx(implied, abs=0.01) and row["ci_low"] < row["value"] < row["ci_high"]
    assert row["difference_low"] > 0.8 and row["over_chance_low"] > 0.5
    assert row["share_above"] == 1.0 and row["matching"].startswith(method)
    assert row["shuffled"] == pytest.approx(0, abs=0.005)
    assert row["max_cosine_a"] == pytest.approx(row["value"], abs=1e-6)
    backwards = similarity(a, -b, rng=rng, method=method)
    assert backwards["over_chance_low"] < 0.02
    assert similarity(a, -b, rng=rng, method=method, absolute=True)["value"] == pytest.approx(row["value"])


def test_the_shuffled_match_is_the_mean_over_all_shuffles_and_its_interval_counts_both_sides() -> None:
    rng = np.random.default_rng(1)
    a, b = directions(rng, 40, 8, mean=0.5), directions(rng, 40, 8, mean=0.5)
    for absolute in (False, True):
        found = match(a, b, absolute=absolute)
        all_cosines = a[found.rows_a] @ b[found.rows_b].T
        all_cosines = np.abs(all_cosines) if absolute else all_cosines
        others = all_cosines[~np.eye(40, dtype=bool)].mean()
        values = shuffled(a[found.rows_a], b[found.rows_b], found.cosines, absolute)
        assert values.mean() == pytest.approx(others, abs=1e-6)
    means, implied = [], []
    for _ in range(300):
        a, b = directions(rng, 40, 8, mean=0.5), directions(rng, 40, 8, mean=0.5)
        values = shuffled(a, b, np.einsum("nd,nd->n", a, b))
        means.append(values.mean())
        implied.append(values.std(ddof=1) / np.sqrt(40))
    assert np.mean(implied) == pytest.approx(np.std(means), rel=0.15)


def test_unrelated_dictionaries_are_what_chance_gives_and_yet_far_above_the_shuffled_match() -> None:
    """95% is promised. The sum of the best pairs varies less than pairs that are each on their own: it is kept."""
    covered, above, gaps = 0, 0, []
    sims, scale = 40, np.linspace(3, 0.5, 32)
    for seed in range(sims):
        rng = np.random.default_rng(seed)
        a, b = (directions(rng, 150, 32, scale, mean=0.2) for _ in range(2))
        row = similarity(a, b, rng=rng, chance_draws=2)
        covered += row["over_chance_low"] <= 0 <= row["over_chance_high"]
        above += row["difference_low"] > 0
        gaps.append(row["over_chance"])
    print("covered", covered / sims, "above the shuffled match", above / sims, "bias", np.mean(gaps))
    assert covered / sims >= 0.93 and above == sims
    assert abs(np.mean(gaps)) < 0.005


def test_an_unrelated_copy_keeps_what_a_dictionary_is_by_itself() -> None:
    rng = np.random.default_rng(2)
    rows = directions(rng, 500, 24, np.geomspace(4, 0.5, 24), mean=0.3)
    turned = next(unrelated(rows, rng))
    assert turned.mean(axis=0) == pytest.approx(rows.mean(axis=0), abs=0.03)
    spread = [np.linalg.eigvalsh(np.cov(x.T)) for x in (rows, turned)]
    assert spread[1] == pytest.approx(spread[0], rel=0.25)
    assert np.abs(np.einsum("nd,nd->n", rows, turned)).max() < 0.999
    # Twins stay twins.
    twins = np.concatenate([rows[:50], noised(rng, rows[:50], 0.05)])
    again = next(unrelated(unit(twins)[0], rng))
    assert np.einsum("nd,nd->n", again[:50], again[50:]).min() > 0.97
    # Where all axes are alike, single flips would leave directions along them where they are.
    axes = next(unrelated(np.eye(40, dtype=np.float32), rng))
    assert np.abs(np.diag(axes)).mean() < 0.4


def chain(steps: Sequence[np.ndarray], rng: np.random.Generator, seeds: Sequence[int] | None = None) -> pd.DataFrame:
    """Matches of dictionaries at layers 3, 6, 9, ..."""
    rows = [unit(step)[0] for step in steps]
    found = []
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            m = measure(rows[i], rows[j], rng=rng, chance_draws=0)
            layers = (3, 3) if seeds is not None else (3 + 3 * i, 3 + 3 * j)
            found.append(pd.DataFrame({
                "kind": "decoder", "variant": "topk", "place": "layers", "a": f"s{i}", "b": f"s{j}",
                "layer_a": layers[0], "layer_b": layers[1], "seed_a": seeds[i] if seeds else 0,
                "seed_b": seeds[j] if seeds else 0, "latent_a": m.pairs.rows_a, "latent_b": m.pairs.rows_b,
                "value": m.pairs.cosines, "shuffled": m.shuffled, "chance": m.chance,
            }))  # fmt: skip
    return pd.concat(found, ignore_index=True)


def contrast(table: pd.DataFrame) -> pd.DataFrame:
    chosen = table[(table["what"] == "nearer - farther") & (table["against"] == "shuffled")]
    return chosen.set_index("anchor")


def test_neighbours_in_a_chain_of_layers_are_more_alike_than_distant_ones() -> None:
    rng = np.random.default_rng(3)
    steps = [rng.normal(size=(120, 48))]
    for _ in range(3):
        steps.append(steps[-1][rng.permutation(120)] + 0.7 * rng.normal(size=(120, 48)))
    table = by_distance(chain(steps, rng))
    similar = table[(table["what"] == "similarity") & (table["against"] == "shuffled")].set_index("steps")["value"]
    assert similar["1"] > similar["2"] + 0.05 > similar["3"] + 0.1
    found = contrast(table)
    assert set(found.index) == {"s0", "s1", "s2", "s3", "all"}
    assert (found["ci_low"] > 0.03).all() and (found["p"] < 0.001).all()
    assert found.loc["all", "value"] == pytest.approx(found.drop("all")["value"].mean())
    assert (table[table["against"] == "chance"]["status"] == "no_baseline").all()


def test_layers_that_all_are_equally_far_apart_show_no_difference() -> None:
    """Layers that each lie as far from one common dictionary: p < 0.05 in about 5%; and unrelated ones, in at most 5%."""
    false: dict[str, list[bool]] = {"star": [], "unrelated": [], "anchors": []}
    spread, promised = [], []
    for seed in range(80):
        rng = np.random.default_rng(seed)
        common = rng.normal(size=(60, 32))
        star = [common + 0.6 * rng.normal(size=(60, 32)) for _ in range(3)]
        found = contrast(by_distance(chain(star, rng)))
        false["star"].append(found.loc["all", "p"] < 0.05)
        false["anchors"] += list(found.drop("all")["p"] < 0.05)
        spread.append(found.loc["all", "value"])
        promised.append((found.loc["all", "ci_high"] - found.loc["all", "ci_low"]) / 3.92)
        if seed >= 25:
            continue
        alone = [rng.normal(size=(60, 32)) for _ in range(3)]
        false["unrelated"].append(contrast(by_distance(chain(alone, rng))).loc["all", "p"] < 0.05)
    rates = {name: np.mean(values) for name, values in false.items()}
    print(rates, np.std(spread), np.mean(promised))
    assert 0.01 <= rates["star"] <= 0.10 and rates["anchors"] <= 0.10 and rates["unrelated"] <= 0.05
    assert np.mean(promised) == pytest.approx(np.std(spread), rel=0.25)


def test_a_match_that_serves_two_anchors_is_no_two_witnesses() -> None:
    """All anchors together rest on three pairs of dictionaries: their interval is not that of independent anchors."""
    rng = np.random.default_rng(4)
    common = rng.normal(size=(300, 32))
    found = contrast(by_distance(chain([common + 0.6 * rng.normal(size=(300, 32)) for _ in range(3)], rng)))
    single = found.drop("all")
    reach = (single["ci_high"] - single["ci_low"]).to_numpy()
    assert found.loc["all", "ci_high"] - found.loc["all", "ci_low"] > 1.1 * np.sqrt((reach**2).sum()) / len(reach)


def test_seeds_of_one_layer_are_their_own_distance() -> None:
    rng = np.random.default_rng(5)
    common = rng.normal(size=(50, 32))
    table = by_distance(chain([common + 0.5 * rng.normal(size=(50, 32)) for _ in range(3)], rng, seeds=[0, 1, 2]))
    row = table[table["against"] == "shuffled"]
    assert row["steps"].tolist() == ["0"] and row["seeds"].tolist() == ["different"]
    assert row["value"].iloc[0] == pytest.approx(0.8, abs=0.05) and row["n_dictionaries"].iloc[0] == 3


def test_flipping_signs_in_parts_is_the_same_test(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(6).normal(0.15, 1, 200)
    whole = layers_apart._sign_flip(values, np.random.default_rng(0))
    monkeypatch.setattr(layers_apart, "SIGNS", 200 * 700)
    assert layers_apart._sign_flip(values, np.random.default_rng(0)) == pytest.approx(whole, abs=0.012)


@pytest.mark.parametrize(("n", "least"), [(1000, 0.97), (2000, 0.97)])
def test_greedy_reaches_nearly_what_is_best(n: int, least: float) -> None:
    """Of unrelated dictionaries, its worst case, 97%; where half of the latents have a counterpart, 98%."""
    rng = np.random.default_rng(7)
    a = directions(rng, n, 64)
    half = noised(rng, a[rng.permutation(n)], 1.0)
    half[::2] = directions(rng, n // 2, 64)
    for b, share in ((directions(rng, n, 64), least), (half, 0.98)):
        greedy, exact = match(a, b, "greedy"), match(a, b, "exact")
        assert len(set(greedy.rows_b.tolist())) == n
        print(n, greedy.cosines.mean() / exact.cosines.mean())
        assert share <= greedy.cosines.mean() / exact.cosines.mean() <= 1 + 1e-6


def test_candidates_are_the_largest_cosines() -> None:
    rng = np.random.default_rng(8)
    values = rng.normal(size=(7, 1003)).astype(np.float32)
    found = np.sort(matching._largest(values, 9), axis=1)
    assert np.array_equal(found, np.sort(np.argsort(values, axis=1)[:, -9:], axis=1))


def test_other_widths_and_dead_latents() -> None:
    rng = np.random.default_rng(9)
    a = directions(rng, 60, 32)
    b = np.concatenate([directions(rng, 50, 32), noised(rng, a, 0.3)])
    for x, y in ((a, b), (b, a)):
        row = similarity(x, y, rng=rng)
        assert row["n_matched"] == 60 and {row["n_a"], row["n_b"]} == {60, 110} and row["value"] > 0.9
    # The dead ones of either side are counterparts of live ones, and do not count.
    live_a, live_b = np.arange(60) >= 20, np.arange(110) < 80
    found = match(a, b, live_a=live_a, live_b=live_b)
    assert (found.n_a, found.n_b, len(found.cosines)) == (40, 80, 40)
    assert live_a[found.rows_a].all() and live_b[found.rows_b].all()
    with_dead, without = similarity(a, b, rng=rng), similarity(a, b, rng=rng, live_a=live_a, live_b=live_b)
    assert without["value"] < with_dead["value"] - 0.2 and without["share_above"] == pytest.approx(10 / 40, abs=0.03)
    none = similarity(a, b, rng=rng, live_a=np.zeros(60, dtype=bool))
    assert none["status"] == "too_few_latents" and np.isnan(none["value"]) and none["n_a"] == 0


def test_a_row_without_a_direction_is_no_latent() -> None:
    rng = np.random.default_rng(10)
    rows, good = unit(np.array([[3.0, 4.0], [0, 0], [np.nan, 1]]))
    assert rows[0] == pytest.approx([0.6, 0.8]) and good.tolist() == [True, False, False] and not rows[1:].any()
    assert match(rows, directions(rng, 5, 2)).n_a == 1


def test_what_cannot_be_matched_is_said_in_one_line() -> None:
    rng = np.random.default_rng(11)
    a = directions(rng, 5, 4)
    for call, said in (
        (lambda: match(a, directions(rng, 5, 3)), "equally wide"),
        (lambda: match(a, 2 * a), "unit length"),
        (lambda: match(a, a, "best"), "exact, greedy"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_25_000_latents_go_the_greedy_way_in_bounded_memory() -> None:
    rng = np.random.default_rng(12)
    n = 25_000
    a = directions(rng, n, 32)
    order = rng.permutation(n)
    b = noised(rng, a[order], 0.3)
    with pytest.raises(UserError, match="'greedy' or 'auto'"):
        match(a, b, "exact")
    tracemalloc.start()
    found = match(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.method.startswith("greedy") and len(found.cosines) == n
    assert (order[found.rows_b] == found.rows_a).mean() > 0.99
    # All cosines would be 2,500 MB.
    print("peak MB", peak / 1e6)
    assert peak < 500e6
