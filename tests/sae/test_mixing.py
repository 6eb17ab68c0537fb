"""The mixing buffer: it loses nothing, mixes across the stream, hands out halves, and resumes exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sae import SAEError
from sae.mixing import MixingBuffer

N, PART, BATCH = 1000, 30, 20


def stream(position: int) -> Iterator[tuple[int, Mapping[str, Tensor]]]:
    """Rows that say where in the stream they come from, at two sites."""
    for start in range(position, N, PART):
        rows = torch.arange(start, min(start + PART, N)).float()[:, None]
        yield start + PART, {"x": rows, "y": -rows}


def buffer(capacity: int = 200) -> MixingBuffer:
    return MixingBuffer(stream, n_steps=N // BATCH, capacity=capacity, batch_size=BATCH, seed=3)


def test_every_row_is_handed_out_once() -> None:
    mixing = buffer()
    batches = [mixing.batch(step) for step in range(N // BATCH)]
    assert all(torch.equal(batch["x"], -batch["y"]) for batch in batches), "sites stay together"
    assert sorted(torch.cat([batch["x"] for batch in batches])[:, 0].tolist()) == list(range(N))
    with pytest.raises(SAEError, match="ended before training did"):
        mixing.batch(N // BATCH)


def test_each_round_hands_out_half_and_batches_are_mixed() -> None:
    mixing = buffer()
    mixing.batch(0)
    assert len(mixing._kept["x"]) == 100 and len(mixing._out["x"]) == 100 - BATCH
    first = torch.cat([mixing.batch(step)["x"] for step in range(1, 5)])
    assert float(first.max()) < 200 and float(first.max()) > 150, "from the whole first filling, and no further"
    later = mixing.batch(5)["x"]
    assert float(later.min()) < 200 < float(later.max()), "old rows and new ones"
    assert float(later.std()) > 50


def test_a_restored_buffer_goes_on_with_the_same_batches(tmp_path: Path) -> None:
    whole, first = buffer(), buffer()
    wanted = [whole.batch(step)["x"] for step in range(N // BATCH)]
    for step in range(17):
        first.batch(step)
    first.save(tmp_path / "stream.safetensors")
    resumed = buffer()
    resumed.restore(tmp_path / "stream.safetensors")
    assert resumed.step == 17
    for step in range(17, N // BATCH):
        assert torch.equal(resumed.batch(step)["x"], wanted[step]), step


def test_a_buffer_that_is_behind_catches_up() -> None:
    """A kill between two files leaves the stream one checkpoint behind what is trained on it."""
    whole, behind = buffer(), buffer()
    wanted = [whole.batch(step)["x"] for step in range(20)]
    assert torch.equal(behind.batch(3)["x"], wanted[3]) and torch.equal(behind.batch(19)["x"], wanted[19])


def test_a_state_of_another_stream_is_refused(tmp_path: Path) -> None:
    buffer().save(tmp_path / "b")
    other = MixingBuffer(stream, n_steps=9, capacity=200, batch_size=BATCH, seed=3, identity="other sites")
    with pytest.raises(SAEError, match="other dictionaries or other data"):
        other.restore(tmp_path / "b")


def test_a_sample_takes_nothing_out() -> None:
    one, other = buffer(), buffer()
    assert set(one.sample()["x"][:, 0].tolist()) <= set(range(200))
    assert torch.equal(one.batch(0)["x"], other.batch(0)["x"])


def test_wrong_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SAEError, match="two batches of 20"):
        buffer(capacity=39)
    mixing = buffer()
    mixing.batch(1)
    with pytest.raises(SAEError, match="back from step 2 to 1"):
        mixing.batch(1)
    mixing.save(tmp_path / "b")
    (tmp_path / "b").write_bytes((tmp_path / "b").read_bytes()[:-9])
    with pytest.raises(SAEError, match="damaged"):
        buffer().restore(tmp_path / "b")
