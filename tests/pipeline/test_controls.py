"""Neurons, a random SAE and a random model in the place of the real thing: collected, explained, scored, told apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import planted
import pytest
import torch

import autointerp
import sae
from autointerp.config import resolve
from autointerp.pipeline.dictionary import random_sae
from autointerp.store.reader import LatentStore
from autointerp.subject.load import load_subject

SMALL = ("--context-length", 64, "--tokens", 20_000, "--plain")
DRAW = (
    "--set", "sampling.explain_activating=12", "--set", "sampling.explain_random=12", "--set", "sampling.window=16",
    "--set", "sampling.score_activating=10", "--set", "sampling.score_random=10", "--set", "sampling.min_windows=5",
)  # fmt: skip
SCORED = ("--method", "detection,surprisal", "--client", "fake", "--plain", "--set", "max_failed=1")


def through(cli: Callable[..., Any], out: Path, *what: object) -> pd.DataFrame:
    """Collect, explain and score; the scores."""
    for verb, more in (
        ("collect", (*what, *SMALL)),
        ("explain", (*what, *SMALL, *DRAW, "--client", "fake", "--limit", 6)),
    ):
        ended = cli(verb, *more, "--out", out)
        assert ended.code == 0, ended.err
    assert "collecting" not in ended.err, "explain made a store of its own"
    ended = cli("score", "--run", out, *SCORED)
    assert ended.code == 0, ended.err
    return autointerp.load_scores(out)


def test_neurons(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    """`layers.0` means the inputs of that block's down projection."""
    out = tmp_path / "neurons"
    where = ("--sae", "neurons:4", "--model", world.model, "--hookpoint", "layers.0", "--dataset", world.corpus)
    scores = through(cli, out, *where)
    assert set(scores["control"]) == {"neurons_topk", "shuffled_explanation", "generic_explanation"}
    assert set(scores["hookpoint"]) == {"layers.0.mlp.down_proj:in"} and set(scores["arch"]) == {"neurons"}
    (folder,) = (out / "store").iterdir()
    store = LatentStore.open(folder)
    # Against a hook of this test's own, on one context.
    subject = load_subject(str(world.model))
    seen: list[torch.Tensor] = []
    down = subject.model.model.layers[0].mlp.down_proj
    down.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        subject.model(torch.from_numpy(np.array(store.tokens[:1])).long())
    dense = seen[0][0]
    kept = dense * (dense.abs() >= dense.abs().topk(4, dim=1).values[:, -1:])
    kept[torch.from_numpy(np.array(store.documents[0] < 0))] = 0
    found = torch.zeros_like(kept)
    for latent in range(store.n_latents):
        positions, values = store.of(latent)
        here = positions < store.context_length
        found[positions[here], latent] = torch.from_numpy(values[here].copy())
    torch.testing.assert_close(found, kept, atol=1e-5, rtol=1e-4)
    each_pole_is_explained_and_scored_for_itself(out, scores, store)


def each_pole_is_explained_and_scored_for_itself(out: Path, scores: pd.DataFrame, store: LatentStore) -> None:
    """Neurons fire with both signs."""
    told = autointerp.load_explanations(out)
    both = set(told.loc[told["pole"] == 1, "latent"]) & set(told.loc[told["pole"] == -1, "latent"])
    assert both, "no neuron fires enough with both signs"
    assert not told.duplicated(["latent", "pole"]).any() and told["explanation_id"].is_unique
    windows = autointerp.load_table(out, "windows").query("kind == 'activating'")
    for (latent, pole), group in windows.groupby(["latent", "pole"]):
        assert latent in set(told["latent"])
        for values in group["activations"]:
            assert pole * values[np.abs(values).argmax()] > 0, "the strongest activation is of the pole's sign"
    for latent in both:
        mine = windows[windows["latent"] == latent]
        shown = [set(mine.loc[mine["pole"] == pole, "window_id"]) for pole in (1, -1)]
        assert shown[0] and shown[1] and not shown[0] & shown[1]
    own = scores.query("control == 'neurons_topk' and metric == 'balanced_accuracy'")
    assert set(zip(own["latent"], own["pole"], own["explanation_id"], strict=True)) == set(
        zip(told["latent"], told["pole"], told["explanation_id"], strict=True)
    )
    of = told.set_index("explanation_id")["latent"]
    shuffled = scores.query("control == 'shuffled_explanation'")
    assert (of.loc[shuffled["explanation_id"]].to_numpy() != shuffled["latent"].to_numpy()).all()


@pytest.mark.parametrize("null", ["random_sae", "random_model"])
def test_random_stand_ins(null: str, world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    real = through(cli, tmp_path / "real", "--sae", world.sae)
    read = world.sae
    if null == "random_model":
        # The planted latents' thresholds lie beyond anything that such a model does.
        read = sae.save(random_sae(sae.load(world.sae), seed=3), tmp_path / "other")
        assert cli("explain", "--sae", world.sae, "--null", null, *SMALL, "--out", tmp_path / "dead").code == 2
    random = through(cli, tmp_path / null, "--sae", read, "--null", null)
    assert set(real["control"]) == {"none", "shuffled_explanation", "generic_explanation"}
    assert set(random["control"]) == {null, "shuffled_explanation", "generic_explanation"}
    both = pd.concat([real, random])
    keys = ["run_id", "sae_id", "model", "latent", "method", "metric", "control"]
    assert not both.duplicated(keys).any()
    summary = autointerp.summarise(both).set_index(["control", "method", "metric"])
    # Planted latents are words and their explanations name them; random ones are nothing in particular.
    column = ("detection", "balanced_accuracy")
    assert summary.loc[("none", *column), "median"] == 1.0
    assert summary.loc[(null, *column), "median"] < 0.9
    stores = [next((tmp_path / name / "store").iterdir()) for name in ("real", null)]
    counts = [LatentStore.open(folder).n_fired for folder in stores]
    assert (counts[0] != counts[1]).any()
    page = cli("report", tmp_path / "real", tmp_path / null)
    assert page.code == 0, page.err


def test_a_random_sae_is_like_the_real_one(world: Any) -> None:
    real = sae.load(world.sae)
    real.b_dec.data.uniform_(-1, 1)
    made = random_sae(real, seed=1)
    assert (made.n_latents, made.d_in, made.config_dict()["k"]) == (real.n_latents, real.d_in, 1)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(made.n_latents))
    torch.testing.assert_close(made.b_dec, real.b_dec)
    assert sae.content_sha(made) == sae.content_sha(random_sae(real, seed=1))
    assert sae.content_sha(made) != sae.content_sha(random_sae(real, seed=2))


def test_a_random_sae_has_the_recorded_sparsity_and_the_signs() -> None:
    from sae.architectures import abstopk, jumprelu

    thresholds = jumprelu.create({"d_in": 8, "n_latents": 40}, sae.SAEMetadata(metrics={"l0": 6.6}))
    assert random_sae(thresholds, 0).config_dict()["k"] == 7
    assert random_sae(jumprelu.create({"d_in": 8, "n_latents": 40}), 0).config_dict()["k"] == 40  # fewer than 50
    signed = random_sae(abstopk.create({"d_in": 8, "n_latents": 40, "k": 5}), 0)
    assert (signed.encode(torch.randn(50, 8)).values < 0).any()


def test_a_random_model_is_the_same_for_the_same_seed(world: Any) -> None:
    trained = load_subject(str(world.model))
    one, again, other = (load_subject(str(world.model), random_seed=seed) for seed in (1, 1, 2))
    assert one.fingerprint == again.fingerprint
    assert len({trained.fingerprint, one.fingerprint, other.fingerprint}) == 3
    assert one.null and not trained.null and one.label != trained.label


def test_an_sae_trained_on_a_random_model_is_read_on_it(world: Any, cli: Callable[..., Any], tmp_path: Path) -> None:
    ended = cli(
        "train", "--model", world.model, "--hookpoint", planted.HOOKPOINT, "--null", "random_model", "--dataset",
        world.corpus, *SMALL, "--expansion", 1, "--k", 2, "--batch-size", 512, "--set", "train.held_out=4",
        "--out", tmp_path / "grid",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    (folder,) = (tmp_path / "grid" / "saes").iterdir()
    # Another seed, and no --null: the SAE knows which random model it is of.
    ended = cli("collect", "--sae", folder, *SMALL, "--seed", 5, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    (store,) = (tmp_path / "run" / "store").iterdir()
    seed = sae.load(folder).metadata.extra["random_model_seed"]
    identity = LatentStore.open(store).identity
    assert identity["model_sha"] == load_subject(str(world.model), random_seed=seed).fingerprint
    both = cli("collect", "--sae", folder, "--sae", world.sae, *SMALL, "--out", tmp_path / "both")
    assert both.code == 2 and "differ in the model" in both.err, both.err
    scores = through(cli, tmp_path / "run", "--sae", folder, "--seed", 5)
    assert set(scores["control"]) == {"random_model", "shuffled_explanation", "generic_explanation"}


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--sae", "neurons:4"), "name the model with --model"),
        (("--sae", "neurons:4", "--null", "random_sae"), "--model"),
        (("--sae", "neurons:0"), "k has to lie between 1"),
        (("--null", "random_saee"), "config error at null"),
    ],
)
def test_what_cannot_be_is_said(
    flags: tuple[str, ...], said: str, world: Any, cli: Callable[..., Any], tmp_path: Path
) -> None:
    flags = flags if "--sae" in flags else ("--sae", str(world.sae), *flags)
    if "neurons:0" in flags:
        flags += ("--model", str(world.model), "--hookpoint", "layers.0")
    ended = cli("collect", *flags, "--dataset", world.corpus, "--out", tmp_path / "run", *SMALL)
    assert ended.code == 2 and said in ended.err and ended.err.count("\n") <= 3, ended.err
    assert not (tmp_path / "run").exists()


def test_settings_know_the_controls() -> None:
    assert resolve({"null": "random_model"}, environ={}).null == "random_model"
