"""The trainer: it learns, it resumes bit for bit after a kill, and it refuses what cannot work."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from planted_features import planted, random_topk
from safetensors.torch import load_file

from sae import SAEError, TrainConfig, Trainer
from sae.architectures.topk import Config, TopK
from sae.errors import Diverged
from sae.learner import Learner, Progress
from sae.metrics import Reconstruction
from sae.sources import Replay, Rows
from sae.trainer import train_all
from sae.world import World

SHAPE = Config(d_in=32, n_latents=256, k=3)
TRAIN = TrainConfig(
    batch_size=256, epochs=10, warmup_steps=10, dead_after=255, checkpoint_every=20, log_every=3, seed=5
)
# What the killed process runs: the same data and settings, slowed down at every line of the log.
CHILD = """
import sys, time
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[2]))
sys.path.insert(0, sys.argv[3])
from test_trainer import SHAPE, TRAIN, data
from sae.architectures.topk import TopK
from sae import Trainer
Trainer(TopK(SHAPE), data(), TRAIN, Path(sys.argv[1])).run(lambda progress: time.sleep(0.05))
"""


def data() -> NDArray[Any]:
    return planted(2048 + 100, seed=3)[1]


def log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(model: TopK) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def run(folder: Path | None, config: TrainConfig = TRAIN, activations: NDArray[Any] | None = None) -> TopK:
    model = TopK(SHAPE)
    Trainer(model, data() if activations is None else activations, config, folder).run()
    return model


def kill_in_training(folder: Path) -> int:
    """Start a run in another process, SIGKILL it after its first checkpoint, return the step of its last log line."""
    here = str(Path(__file__).parent)
    command = [sys.executable, "-c", CHILD, str(folder), str(torch.get_num_threads()), here]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        try:
            deadline = time.monotonic() + 60
            while True:
                assert child.poll() is None, (
                    f"it ended before it could be killed: {child.stderr and child.stderr.read()}"
                )
                assert time.monotonic() < deadline, "no checkpoint within a minute"
                if (folder / "checkpoint.safetensors").exists():
                    lines = (folder / "metrics.jsonl").read_text().splitlines()
                    if len(lines) >= 9:  # step 27: beyond the checkpoint of step 20
                        break
                time.sleep(0.01)
        finally:
            child.kill()
            child.wait()
    assert child.returncode == -9
    return int(log(folder)[-1]["step"])


def test_a_killed_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    last = kill_in_training(tmp_path / "killed")
    assert 27 <= last < 80, "killed in mid-training"
    with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
        file.write('{"step": ')  # what a crash of the machine may leave
    seen: list[Progress] = []
    model = TopK(SHAPE)
    trainer = Trainer(model, data(), TRAIN, tmp_path / "killed")
    trainer.run(seen.append)
    assert seen[0].step >= 21, "it went on from a checkpoint, not from the start"
    whole = run(tmp_path / "whole")
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(model)[name]), name
    steps = [line["step"] for line in log(tmp_path / "killed")]
    assert steps == [*range(3, 80, 3), 80]
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert all(line["auxk"] > 0 for line in log(tmp_path / "whole") if 20 < line["step"] < 60), "some latents are dead"
    # Run again, it has nothing left to do and says the same.
    again = run(tmp_path / "killed")
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(again).items())


def test_a_run_without_folder_is_the_same_run(tmp_path: Path) -> None:
    with_folder, without = run(tmp_path / "a"), run(None)
    assert all(torch.equal(tensor, weights(without)[name]) for name, tensor in weights(with_folder).items())
    other = run(None, replace(TRAIN, seed=6))
    assert not torch.equal(other.encoder, without.encoder), "the seed matters"


def test_the_loss_falls_and_the_scale_is_folded(tmp_path: Path) -> None:
    """Trained on far-off, large activations, the dictionary reconstructs them as they are."""
    x = 100 * data() + 30
    model = run(tmp_path, replace(TRAIN, epochs=30), x)
    losses = [line["loss"] for line in log(tmp_path)]
    assert losses[-1] < 0.2 * losses[0]
    assert log(tmp_path)[-1]["lr"] < 0.1 * max(line["lr"] for line in log(tmp_path))
    measured = Reconstruction(model)
    measured.add(torch.from_numpy(x))
    assert measured.figures()["fvu"] < 0.2
    assert torch.allclose(model.W_dec.norm(dim=1), torch.ones(256), atol=1e-5)
    recorded = model.metadata.normalization
    assert recorded is not None and recorded["kind"] == "expected_average" and recorded["folded"] is True
    assert recorded["scale"] == pytest.approx(np.sqrt(32) / np.linalg.norm(x, axis=1).mean(), rel=1e-5)


def test_batches_of_an_epoch_cover_the_rows_once() -> None:
    x = np.arange(1000, dtype=np.float32)[:, None].repeat(32, axis=1) + 1
    for block in (1, 5):
        source = Replay({"x": Rows(x)}, batch_size=100, epochs=2, seed=5, block=block)
        epochs = []
        for epoch in (0, 1):
            rows = np.concatenate([source.batch(10 * epoch + i)["x"][:, 0].numpy() for i in range(10)])
            assert sorted(rows.astype(int)) == list(range(1, 1001))
            epochs.append(rows)
        assert not np.array_equal(*epochs), "each epoch has an order of its own"


def test_processes_share_a_batch_without_overlap() -> None:
    x = np.arange(1000, dtype=np.float32)[:, None]
    whole = Replay({"x": Rows(x)}, batch_size=100, epochs=1, seed=5, block=5)
    shares = [
        Replay({"x": Rows(x)}, batch_size=100, epochs=1, seed=5, block=5, world=World(rank, 2)) for rank in (0, 1)
    ]
    for step in (0, 7):
        parts = torch.cat([share.batch(step)["x"] for share in shares])
        assert sorted(parts[:, 0].tolist()) == sorted(whole.batch(step)["x"][:, 0].tolist())
    with pytest.raises(SAEError, match="does not divide into 2 processes of blocks of 8"):
        Replay({"x": Rows(x)}, batch_size=100, epochs=1, seed=5, block=8, world=World(0, 2))


def test_eight_bit_rows_are_scaled_back() -> None:
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    scales = np.abs(x).max(axis=1) / 127
    rows = Rows(np.round(x / scales[:, None]).astype(np.int8), scales)
    assert (rows.read(np.arange(3, 9)) - torch.from_numpy(x[3:9])).abs().max() <= scales.max() / 2 + 1e-6
    assert rows.read(np.array([5, 8])).dtype == torch.float32


def test_sites_of_unequal_length_are_refused() -> None:
    with pytest.raises(SAEError, match="the same tokens"):
        Replay({"x": Rows(np.zeros((9, 2))), "y": Rows(np.zeros((8, 2)))}, batch_size=2, epochs=1, seed=0)


def test_dictionaries_trained_together_are_those_trained_alone(tmp_path: Path) -> None:
    """One pass over the batches for several dictionaries changes nothing for any of them, not even after a kill."""
    x = data()

    def learner(k: int, folder: Path) -> Learner:
        model = TopK(replace(SHAPE, k=k))
        return Learner(model, TRAIN.learning(), source.n_steps, folder=folder)

    source = Replay({"x": Rows(x)}, batch_size=256, epochs=10, seed=5)
    alone = {}
    for k in (2, 3):
        alone[k] = learner(k, tmp_path / f"alone{k}")
        train_all([alone[k]], source)
    together = [learner(k, tmp_path / f"both{k}") for k in (2, 3)]

    def stop(step: int, reports: list[tuple[Learner, Progress]]) -> None:
        if step == 50:
            together[0].save_checkpoint()  # what a kill between two checkpoints leaves: one is ahead of the other
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_all(together, source, checkpoint_every=20, on_progress=stop)
    resumed = [learner(k, tmp_path / f"both{k}") for k in (2, 3)]
    train_all(resumed, source, checkpoint_every=20)
    for k, one in zip((2, 3), resumed, strict=True):
        for name, tensor in weights(alone[k].model).items():
            assert torch.equal(tensor, weights(one.model)[name]), (k, name)


def test_a_trainer_runs_once() -> None:
    trainer = Trainer(TopK(SHAPE), data(), replace(TRAIN, epochs=1))
    trainer.run()
    with pytest.raises(SAEError, match="make a new one"):
        trainer.run()


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run(tmp_path, replace(TRAIN, epochs=1))
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SAEError, match=r"damaged.*delete it"):
        run(tmp_path, replace(TRAIN, epochs=1))


@pytest.mark.parametrize(
    ("shape", "train", "rows"),
    [
        (SHAPE, replace(TRAIN, lr=1e-4), 2148),
        (SHAPE, replace(TRAIN, seed=6), 2148),
        (SHAPE, replace(TRAIN, epochs=11), 2148),
        (replace(SHAPE, k=4), TRAIN, 2148),
        (replace(SHAPE, n_latents=64), TRAIN, 2148),
        (SHAPE, TRAIN, 2100),
    ],
)
def test_changed_settings_are_refused_on_resume(tmp_path: Path, shape: Config, train: TrainConfig, rows: int) -> None:
    run(tmp_path, TRAIN)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(SAEError, match="other settings or other data"):
        Trainer(TopK(shape), data()[:rows], train, tmp_path).run()
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_other_data_of_the_same_size_is_refused_on_resume(tmp_path: Path) -> None:
    run(tmp_path, TRAIN)
    with pytest.raises(SAEError, match="other settings or other data"):
        run(tmp_path, TRAIN, 7 * data())


def test_divergence_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"loss is (nan|inf) at step \d+.*lower learning rate"):
        run(tmp_path, replace(TRAIN, lr=1e12))
    assert issubclass(Diverged, SAEError)


def test_a_blown_up_run_is_an_error_even_if_finite() -> None:
    with pytest.raises(Diverged):
        run(None, replace(TRAIN, lr=1e6))


def test_activations_that_are_not_finite_are_refused() -> None:
    x = data()
    x[17, 3] = np.nan
    with pytest.raises(SAEError, match="hold NaN or infinity"):
        run(None, TRAIN, x)
    with pytest.raises(SAEError, match=r"is 0\.0; nothing can be trained"):
        run(None, TRAIN, np.zeros_like(x))


def test_a_rare_nan_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """One bad row that the sample for the scale did not see."""
    monkeypatch.setattr("sae.sources.SAMPLE_ROWS", 64)
    x = data()
    trainer = Trainer(TopK(SHAPE), x, TRAIN)
    x[17, 3] = np.nan
    with pytest.raises(Diverged, match="loss is nan"):
        trainer.run()


def test_the_last_good_checkpoint_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sae.sources.SAMPLE_ROWS", 64)
    x = data()
    trainer = Trainer(TopK(SHAPE), x, replace(TRAIN, log_every=50, checkpoint_every=4), tmp_path)
    trainer.source.batch(0)
    x[trainer.source._order[-1], 3] = (
        np.nan
    )  # a row that the first epoch leaves out, so that good checkpoints come first
    assert torch.isfinite(trainer.source.sample()["x"]).all(), "the sample has to miss it"
    with pytest.raises(Diverged, match="last good checkpoint is in"):
        trainer.run()
    assert all(torch.isfinite(tensor).all() for tensor in load_file(tmp_path / "checkpoint.safetensors").values())


def test_too_few_tokens_and_another_width_are_refused() -> None:
    with pytest.raises(SAEError, match="255 tokens are fewer than one batch of 256"):
        Trainer(TopK(SHAPE), data()[:255], TRAIN)
    Trainer(TopK(SHAPE), data()[:256], TRAIN)
    with pytest.raises(SAEError, match="31 wide, the SAE reads 32"):
        Trainer(TopK(SHAPE), data()[:, :31], TRAIN)


def test_initialisation_is_seeded() -> None:
    models = [random_topk(seed, d_in=8, n_latents=16, k=2) for seed in (0, 1, 2)]
    for model, seed in zip(models, (4, 4, 5), strict=True):
        model.initialise(seed)
    assert torch.equal(models[0].W_dec, models[1].W_dec) and not torch.equal(models[0].W_dec, models[2].W_dec)
    assert torch.allclose(models[0].W_dec.norm(dim=1), torch.ones(16)) and not models[0].b_enc.any()
