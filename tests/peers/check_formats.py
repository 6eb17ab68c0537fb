"""Load what we write with SAELens' and sparsify's own code, and read what they write from it. `make test-peers`.

Every architecture that a format can hold is saved, loaded there, and compared on the same inputs: codes,
reconstructions and whole forward passes. What the other program then saves is read by us and compared again.
Prints the largest differences; ends with 1 if one exceeds the tolerance.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sparsify import SparseCoder
from torch import Tensor

import sae
from sae.base import SparseAutoencoder

sys.path.insert(0, str(Path(__file__).parents[1] / "sae" / "formats"))

from written import SAELENS, SPARSIFY, inputs, make

TOLERANCE = 1e-5
COLUMNS = ("codes", "decode", "forward", "back")


def apart(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference; infinite where shapes differ or something is no number."""
    if ours.shape != theirs.shape or not torch.isfinite(theirs).all():
        return float("inf")
    return float((ours - theirs).detach().abs().max())


Differences = dict[str, float]


def differences(model: SparseAutoencoder, codes: Tensor, decoded: Tensor, whole: Tensor | None) -> Differences:
    """Of codes, reconstruction from them, and the forward pass where there is one to compare with."""
    x = inputs()
    own = model.encode(x)
    found = {"codes": apart(own.to_dense(), codes), "decode": apart(model.decode(own), decoded)}
    return found if whole is None else found | {"forward": apart(model(x), whole)}


def read_back(model: SparseAutoencoder, folder: Path) -> Differences:
    x = inputs()
    return {"back": apart(model(x), sae.load(folder)(x))}


def by_saelens(model: SparseAutoencoder, folder: Path) -> Differences:
    theirs = SAE.load_from_disk(folder)
    x = inputs()
    codes = theirs.encode(x)
    found = differences(model, codes, theirs.decode(codes), theirs(x))
    theirs.save_model(folder / "back")
    return found | read_back(model, folder / "back")


def by_sparsify(model: SparseAutoencoder, folder: Path) -> Differences:
    theirs = SparseCoder.load_from_disk(folder)
    x = inputs()
    chosen = theirs.encode(x)
    codes = torch.zeros(len(x), model.n_latents).scatter(1, chosen.top_indices, chosen.top_acts)
    # With multi_topk its forward() returns the reconstruction from 4k latents.
    whole = None if theirs.cfg.multi_topk else theirs(x).sae_out
    decoded = theirs.decode(chosen.top_acts, chosen.top_indices)
    found = differences(model, codes, decoded, whole)
    theirs.save_to_disk(folder / "back")
    return found | read_back(model, folder / "back")


def cases() -> Iterator[tuple[str, str, dict[str, Any], SparseAutoencoder, Callable[..., Differences]]]:
    for architecture, config, unit, _ in SAELENS:
        yield "saelens", architecture, config, make(architecture, config, unit), by_saelens
    for architecture, config in SPARSIFY:
        yield "sparsify", architecture, config, make(architecture, config), by_sparsify


def main() -> int:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    print(f"SAELens {version('sae-lens')}, sparsify {version('eai-sparsify')}, torch {torch.__version__}")
    print(f"{'format':9} {'architecture':17} " + " ".join(f"{name:>9}" for name in COLUMNS) + "  config")
    n_cases = n_failed = 0
    with tempfile.TemporaryDirectory() as root, torch.no_grad():
        for format_, architecture, config, model, compare in cases():
            folder = sae.save(model, Path(root) / str(n_cases), format_)
            try:
                found = compare(model, folder)
            except Exception as error:
                found = {"codes": float("inf")}
                print(f"{type(error).__name__}: {error}")
            failed = max(found.values()) > TOLERANCE
            n_cases, n_failed = n_cases + 1, n_failed + failed
            figures = " ".join(f"{found[name]:9.1e}" if name in found else f"{'-':>9}" for name in COLUMNS)
            print(f"{format_:9} {architecture:17} {figures}  {config or ''}{'   FAILED' if failed else ''}")
    print(f"{n_cases - n_failed} of {n_cases} agree within {TOLERANCE:g}")
    return 1 if n_failed or not n_cases else 0


if __name__ == "__main__":
    sys.exit(main())
