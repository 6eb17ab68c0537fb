"""What the report compares: one group per SAE of each run folder, with its latents, explanations and scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from autointerp.report.folder import RunFolder
from autointerp.report.text import visible
from scoring.types import EXPLANATION_CONTROLS


@dataclass(frozen=True, slots=True)
class Group:
    """One SAE in one run. `latents` are all latents of the SAE, `listed` those explained or scored.

    `place` is set where the SAE's name alone would not tell this group from another.
    """

    folder: RunFolder
    run: str
    sae_id: str
    replaced: str
    scores: pd.DataFrame
    explanations: pd.DataFrame
    latents: pd.DataFrame
    metrics: pd.DataFrame
    listed: tuple[int, ...]
    place: str = ""

    @property
    def arch(self) -> str:
        return visible(str(self._about("arch") or "unknown"))

    @property
    def variant(self) -> str:
        """The architecture, or what stands in the SAE's place."""
        return visible(self.replaced) or self.arch

    @property
    def layer(self) -> str:
        """Where it reads, as the columns of the grid say it: the layer's number, or the hookpoint."""
        layer, hookpoint = self._about("layer"), self._about("hookpoint")
        return visible(str(hookpoint if layer is None else int(layer))) if layer is not None or hookpoint else ""

    def _about(self, column: str) -> Any:
        for frame in (self.scores, self.metrics):
            if column in frame and len(known := frame[column].dropna()):
                return known.iloc[0]
        return None

    @property
    def label(self) -> str:
        name = self.sae_id or self.run
        name = f"{name} ({self.replaced})" if self.replaced else name
        return visible(f"{name} in {self.place}" if self.place else name)


def read_groups(run_dirs: Sequence[Path], latent: int | None = None) -> list[Group]:
    """The groups of every run, in the order the runs were given and then by SAE; with `latent`, of that one only."""
    groups: list[Group] = []
    for path in run_dirs:
        folder = RunFolder(path, latent)
        scores, explanations = folder.frame("scores"), folder.frame("explanations")
        latents, metrics = folder.frame("latents"), folder.frame("sae_metrics")
        run = run_name(folder, scores, explanations, latents)
        named = {str(name) for frame in (scores, explanations, latents) for name in frame["sae_id"].unique()}
        for sae_id in sorted(named) or [""]:  # an empty run still has a place on the page
            own_scores, replaced = _as_real(_of(scores, sae_id))
            own_explanations = _of(explanations, sae_id)
            seen = {int(n) for f in (own_scores, own_explanations) for n in f["latent"].dropna().unique()}
            # Of several corpora the first says how often a latent fires.
            own_latents, own_metrics = _of(latents, sae_id).drop_duplicates("latent"), _of(metrics, sae_id)
            listed = tuple(sorted(seen))
            groups.append(
                Group(folder, run, sae_id, replaced, own_scores, own_explanations, own_latents, own_metrics, listed)
            )
    return _told_apart(groups)


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """The same SAE in two runs is named with its run: the folder's name, or its path where those agree as well."""
    labels = Counter(group.label for group in groups)
    folders = Counter(path.name for path in {group.folder.path for group in groups})
    return [
        group if labels[group.label] == 1 else replace(group, place=str(path) if folders[path.name] > 1 else path.name)
        for group in groups
        for path in [group.folder.path]
    ]


def run_name(folder: RunFolder, *frames: pd.DataFrame) -> str:
    """The run ids written in the tables (several after a merge), else the folder's name."""
    ids = sorted({str(name) for frame in frames for name in frame["run_id"].dropna().unique()})
    return visible(", ".join(ids) or folder.path.resolve().name)


def _of(frame: pd.DataFrame, sae_id: str) -> pd.DataFrame:
    return frame[frame["sae_id"] == sae_id].reset_index(drop=True)


def _as_real(scores: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Scores of a replaced subject (a random SAE, a random model, neurons) take the place of the real ones.

    Such a run is a control as a whole: none of its rows says `none`, yet within the group they are what its own
    shuffled explanations are compared with. The second value names the replacement.
    """
    controls = {str(name) for name in scores["control"].unique()}
    replaced = sorted(controls - {"none", *EXPLANATION_CONTROLS})
    if "none" in controls or not replaced:
        return scores, ""
    changed = scores.assign(control=scores["control"].where(scores["control"].isin(EXPLANATION_CONTROLS), "none"))
    return changed, ", ".join(replaced)
