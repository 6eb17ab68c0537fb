"""The dictionaries of finished runs and studies, read without their subject model: directions, live latents, texts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import sae as sae_package
from autointerp.config import RunSettings, resolve
from autointerp.errors import UserError
from autointerp.pipeline.cells import run_folders
from autointerp.pipeline.dictionary import NEURONS_TOPK, RANDOM_MODEL, RANDOM_SAE, is_neurons, load_dictionary
from autointerp.stats.matching import Directions, unit
from autointerp.stats.variants import variants
from autointerp.subject.hookpoints import layer_of
from autointerp.subject.load import SubjectModel
from autointerp.tables.load import load_table
from sae.base import SparseAutoencoder

KEPT = 8
"""Dictionaries whose directions stay in memory."""
FACTS = ("hookpoint", "layer", "arch", "width", "l0", "model", "sae_sha")
"""Columns of scores that say what was scored."""


@dataclass
class Found:
    """One dictionary, of all cells that are about it. `status` is `ok`, or says why it has no directions to compare:
    `neurons` (theirs are the axes), `not_found` (its files are gone) or `changed` (they hold another SAE)."""

    key: str
    """`sae_id`, with `(random_model)` where a random model was read with the SAE of a trained one."""
    folder: Path
    settings: RunSettings = field(repr=False)
    place: str
    """`none` for a trained SAE, or which control this is."""
    arch: str
    hookpoint: str
    width: int
    l0: float
    seed: int | None
    """Of its training, or of a random SAE's draw."""
    space: str
    """The model whose activations its directions live in."""
    live: NDArray[np.bool_] = field(repr=False)
    """`[F]`: fires somewhere, on any corpus."""
    explanations: pd.DataFrame = field(repr=False)
    """explainer, latent, text: of the first draw, one per latent."""
    status: str = "ok"
    signed: bool = False
    variant: str = ""

    @property
    def layer(self) -> int | None:
        return layer_of(self.hookpoint)

    @property
    def position(self) -> str:
        """The hookpoint without its layer: what dictionaries of several layers share."""
        return re.sub(r"\.\d+(?=[.:]|$)", "", self.hookpoint, count=1)

    def directions(self) -> Directions:
        """Decoder rows at unit length, `[F, D]`; rows of zeros where they have none."""
        return _directions(self.folder, str(self.settings.sae), self.key)


def dictionaries(runs: str | Path | Sequence[str | Path]) -> list[Found]:
    """Of run folders, and of the cells of study folders; each once, in the order of variant, place, layer and seed.

    Raises:
        UserError: a folder is none of either, or tells of no latents.
    """
    folders = [runs] if isinstance(runs, str | Path) else list(runs)
    found: dict[str, Found] = {}
    cells = [cell for folder in folders for cell in _cells(Path(folder))]
    # Only some cells tell of all latents; the others add explanations.
    for cell in sorted(cells, key=lambda cell: not (cell / "latents.parquet").is_file()):
        _add(found, cell)
    if not found:
        raise UserError(
            f"no dictionaries in {', '.join(map(repr, map(str, folders)))}: none has a latents.parquet; "
            "a run writes it when it explains"
        )
    facts = [
        {"sae_id": one.key, "place": one.place, "arch": one.arch, "width": one.width, "l0": one.l0,
         "site": str(one.layer if one.layer is not None else one.hookpoint)}
        for one in found.values()
    ]  # fmt: skip
    names = variants(pd.DataFrame(facts))
    for one in found.values():
        one.variant = names[one.key]
    return sorted(found.values(), key=lambda one: (one.variant, one.position, one.layer or 0, one.seed or 0, one.key))


def _cells(folder: Path) -> list[Path]:
    cells = run_folders(folder, "config.yaml")
    if cells == [folder] and not (folder / "config.yaml").is_file():
        raise UserError(f"no run in '{folder}': config.yaml is missing; name the folder that a run was written to")
    return cells


def _add(found: dict[str, Found], folder: Path) -> None:
    if not (folder / "latents.parquet").is_file() and not (folder / "explanations.parquet").is_file():
        return
    settings = resolve({}, config=folder / "config.yaml", environ={})
    explanations = _table(folder, "explanations", ["sae_id", "latent", "pole", "explainer", "draw", "status", "text"])
    latents = _table(folder, "latents", ["sae_id", "latent", "n_fired", "density"])
    ids = pd.concat([latents["sae_id"], explanations["sae_id"]]).dropna().unique()
    for sae_id in ids:
        # The same SAE on a random model is another dictionary.
        key = f"{sae_id} ({RANDOM_MODEL})" if settings.null == RANDOM_MODEL else str(sae_id)
        of_it = latents[latents["sae_id"] == sae_id]
        if key not in found and len(of_it):
            found[key] = _describe(key, folder, settings, of_it)
        if key in found:
            one = found[key]
            fires = of_it.loc[of_it["n_fired"].astype(float) > 0, "latent"].astype(int)
            one.live[fires.to_numpy()] = True
            one.explanations = _texts(one.explanations, explanations[explanations["sae_id"] == sae_id])


def _describe(key: str, folder: Path, settings: RunSettings, latents: pd.DataFrame) -> Found:
    width = int(latents["latent"].max()) + 1
    told = _table(folder, "scores", list(FACTS)).dropna(subset=["hookpoint"]).head(1)
    facts: dict[str, Any] = {str(k): v for k, v in told.iloc[0].items()} if len(told) else {}
    neurons = is_neurons(settings.sae or "")
    loaded = None if neurons else _load(folder, settings)
    status = "neurons" if neurons else "not_found" if loaded is None else "ok"
    metadata = loaded.metadata if loaded is not None else sae_package.SAEMetadata()
    if loaded is not None and not key.split(" ")[0].endswith(sae_package.content_sha(loaded)[:6]):
        status = "changed"
    origin = metadata.extra
    random_weights = settings.null == RANDOM_MODEL or "random_model_seed" in origin
    place = NEURONS_TOPK if neurons else RANDOM_SAE if settings.null == RANDOM_SAE else "none"
    place = RANDOM_MODEL if random_weights else place
    model = Path(str(settings.subject.model or metadata.model or facts.get("model") or "")).name
    return Found(
        key=key, folder=folder, settings=settings, place=place, status=status, width=width,
        arch=loaded.architecture if loaded is not None else str(facts.get("arch") or key.split("-")[0]),
        hookpoint=str(facts.get("hookpoint") or settings.subject.hookpoint or metadata.target_hookpoint
                      or metadata.hookpoint or ""),
        l0=float(latents.drop_duplicates("latent")["density"].sum()),
        seed=origin.get("null_seed", metadata.seed), signed=bool(getattr(loaded, "signed", False)),
        # The SAE of a trained model keeps its directions when it is read on a random one.
        space=f"{model} (random {origin['random_model_seed']})" if "random_model_seed" in origin else model,
        live=np.zeros(width, dtype=np.bool_), explanations=pd.DataFrame(columns=["explainer", "latent", "text"]),
    )  # fmt: skip


def _load(folder: Path, settings: RunSettings) -> SparseAutoencoder | None:
    """The run's dictionary on the CPU, wherever the folder was moved to; None where it is gone."""
    spec = settings.sae or ""
    for place in (spec, *_moved(folder, settings)):
        if place and Path(place).expanduser().exists():
            try:
                return load_dictionary(place, settings, _no_subject)
            except UserError:
                continue
    return None


def _moved(folder: Path, settings: RunSettings) -> list[str]:
    """Where an SAE inside a run's or study's folder lies now, when that folder has been moved since."""
    was, out = Path(settings.sae or ""), Path(settings.out or "")
    inside = [(out, folder), (out.parent.parent, folder.parent.parent)]
    return [str(now / was.relative_to(then)) for then, now in inside if settings.out and was.is_relative_to(then)]


def _no_subject() -> SubjectModel:
    raise UserError("only neurons need their subject model to be told")


@lru_cache(maxsize=KEPT)
def _directions(folder: Path, spec: str, key: str) -> Directions:
    settings = resolve({}, config=folder / "config.yaml", environ={})
    loaded = _load(folder, settings)
    if loaded is None:
        raise UserError(f"the SAE '{spec}' of '{folder}' is gone")
    return unit(loaded.W_dec.detach().float().numpy())[0]


def _table(folder: Path, name: str, columns: list[str]) -> pd.DataFrame:
    """With these columns, null where the file has not got them (older runs), or empty."""
    if not (folder / f"{name}.parquet").is_file():
        return pd.DataFrame(columns=columns)
    return load_table(folder, name).reindex(columns=columns)


def _texts(known: pd.DataFrame, explanations: pd.DataFrame) -> pd.DataFrame:
    """One text per explainer and latent: of the first draw and, for a signed latent, of its positive pole if any."""
    first = explanations["draw"].isna() | (explanations["draw"] == 0).fillna(False)
    kept = explanations[first & explanations["text"].notna() & (explanations["status"] == "ok")]
    ordered = kept.sort_values(["latent", "pole"], ascending=[True, False], kind="stable")
    frames = [frame for frame in (known, ordered[["explainer", "latent", "text"]]) if len(frame)]
    return pd.concat(frames, ignore_index=True).drop_duplicates(["explainer", "latent"]) if frames else known
