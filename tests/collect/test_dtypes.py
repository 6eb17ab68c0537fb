"""Subject models in half precision: codes are float32's, up to what the model's own rounding does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sae
from autointerp.collect.corpus import documents
from autointerp.collect.encode import collect_store
from autointerp.collect.tokens import pack
from autointerp.store.reader import LatentStore
from autointerp.subject.load import load_subject


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_subjects(world: Any, tmp_path: Path, dtype: str) -> None:
    dictionary = sae.load(world.sae)
    stores = {}
    for name in ("float32", dtype):
        subject = load_subject(str(world.model), dtype=name)
        blocks = pack(subject, documents(str(world.corpus), seed=0), n_tokens=8000, context_length=64, skip_first=1)
        assert subject.model.dtype.__str__() == f"torch.{name}"
        collect_store(subject, dictionary, blocks, "layers.0", tmp_path / name, {"dtype": name})
        stores[name] = LatentStore.open(tmp_path / name, verify=True)
    assert stores["float32"].n_activations > 100
    for latent in range(dictionary.n_latents):
        exact, half = stores["float32"].of(latent), stores[dtype].of(latent)
        # The planted words stand far above the threshold, so rounding moves no choice.
        np.testing.assert_array_equal(half[0], exact[0])
        np.testing.assert_allclose(half[1], exact[1], rtol=0.05)
        assert half[1].dtype == np.float32
