"""The tables of a comparison: what each is, which columns one reads, and the page that puts them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from autointerp.files import write_text
from autointerp.tables import formats
from autointerp.tables.formats import Column, plain_markdown

MEASURED = (
    Column("method", ("method",), formats.text), Column("metric", ("metric",), formats.text),
    Column("negatives", ("negatives",), formats.text),
)  # fmt: skip


def _text(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name.replace("_", " "), (name,), formats.text) for name in names)


def _numbers(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name.replace("_", " "), (name,)) for name in names)


@dataclass(frozen=True)
class Table:
    """`columns` are those that are read; None: those of `by` stand before them."""

    title: str
    columns: tuple[Column, ...]
    grouped: bool = False


TABLES: dict[str, Table] = {
    "main": Table(
        "Means over latents with 95% intervals, beside their controls",
        (
            *MEASURED, Column("mean", ("value", "ci_low", "ci_high")), Column("shuffled", ("shuffled",)),
            Column("real - shuffled", ("difference", "difference_low", "difference_high")),
            Column("generic", ("generic",)), Column("latents", ("n",)), Column("null", ("n_null",)),
            Column("scored", ("share_scored",), formats.share),
        ),
        grouped=True,
    ),
    "coverage": Table(
        "What could be scored, and means that take account of it",
        (
            *MEASURED, Column("live", ("share_live",), formats.share), Column("rare", ("share_rare",), formats.share),
            Column("dead", ("share_dead",), formats.share), Column("dense", ("share_dense",), formats.share),
            Column("scored", ("share_scored",), formats.share), Column("nulls", ("nulls",), formats.text),
            Column("with coverage", ("covered", "covered_low", "covered_high")),
            Column("at common density", ("at_density", "at_density_low", "at_density_high")),
            Column("density shared", ("at_density_weight",), formats.share),
            Column("calls", ("calls",)), Column("tokens", ("tokens",)), Column("price, USD", ("price",), formats.price),
        ),
        grouped=True,
    ),
    "tests": Table(
        "Tests of pairs",
        (
            *_text("question"), *MEASURED, Column("layer", ("site",), formats.text), *_text("a", "b"),
            *_numbers("difference"), Column("shift", ("shift", "ci_low", "ci_high")),
            Column("p", ("p",), formats.probability), Column("p Holm", ("p_holm",), formats.probability),
            Column("p BH", ("p_bh",), formats.probability), *_text("design"), Column("pairs", ("n_pairs",)),
            Column("n a", ("n_a",)), Column("n b", ("n_b",)), Column("apart", ("n_apart",)), Column("of", ("n_sites",)),
            *_text("verdict"), *_numbers("noise_sd"), *_text("conclusion"),
        ),
    ),
    "variance": Table(
        "Components of the variance of scores of trained SAEs",
        (
            *MEASURED, *_text("component"), Column("share", ("share", "share_low", "share_high"), formats.share),
            *_numbers("sd"), Column("levels", ("n_levels",)), *_text("status"),
        ),
    ),
    "ranking": Table(
        "Are the same latents best when it is done again?",
        (
            *MEASURED, *_text("variant"), Column("layer", ("site",), formats.text), *_text("across", "a", "b"),
            Column("latents", ("n",)), *_numbers("spearman"), Column("best", ("k",)),
            Column("shared", ("overlap",), formats.share), Column("by chance", ("overlap_by_chance",), formats.share),
            *_text("status"),
        ),
    ),
    "agreement": Table(
        "Do scorers rank the same latents high?",
        (*_text("a", "b"), Column("latents", ("n",)), Column("spearman", ("spearman", "ci_low", "ci_high")),
         *_text("status")),
    ),
    "resolvable": Table(
        "Smallest true difference that is found four times out of five, at p < 0.05 before correction",
        (*MEASURED, *_text("design"), *_numbers("sd", "latents", "difference"), *_text("status")),
    ),
    "plan": Table(
        "Latents of either SAE that the wanted difference needs",
        (
            *MEASURED, *_numbers("difference", "typical", "sd_latents", "latents_now", "windows_now"),
            Column("power now", ("power_now",), formats.share), *_numbers("windows_needed", "windows", "latents",
            "judgements"), *_text("status"),
        ),
    ),
    "similarity": Table(
        "How alike dictionaries of one variant are, over the shuffled match",
        (
            *_text("kind"), Column("variant", ("variant_a",), formats.text), *_numbers("layer_a", "layer_b", "seed_a",
            "seed_b"), Column("cosine", ("value", "ci_low", "ci_high")), *_numbers("shuffled"),
            Column("cosine - shuffled", ("difference", "difference_low", "difference_high")),
            Column("over chance", ("over_chance", "over_chance_low", "over_chance_high")),
            Column("above 0.7", ("share_above",), formats.share), Column("pairs", ("n_matched",)), *_text("status"),
        ),
    ),
    "distance": Table(
        "Are neighbouring layers more alike than distant ones?",
        (
            *_text("kind", "variant", "place", "seeds", "what", "steps", "anchor", "against"),
            Column("excess", ("value", "ci_low", "ci_high")), Column("p", ("p",), formats.probability),
            Column("SAEs", ("n_dictionaries",)), Column("latents", ("n_latents",)), *_text("status"),
        ),
    ),
    "dictionaries": Table(
        "What was compared",
        (
            *_text("variant", "sae_id", "hookpoint"), *_numbers("layer", "width", "l0"),
            Column("fvu", ("fvu", "fvu_low", "fvu_high")), Column("latents", ("n_latents",)),
            *_numbers("live", "rare", "dead", "dense", "scored"),
        ),
    ),
    "cost": Table(
        "What each run took",
        (
            *_text("run", "stage", "model"), *_numbers("calls", "cached_calls", "prompt_tokens", "completion_tokens"),
            Column("price, USD", ("price",), formats.price), *_numbers("seconds", "failures"),
        ),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """What `autointerp.comparison` returns: a DataFrame for each of TABLES, and what they say in words.

    `plan` is empty without a wanted difference, `similarity` and `distance` (docs/similarity.md) unless they were
    asked for. `caveats` are what a reader has to know before the numbers.
    """

    main: pd.DataFrame
    tests: pd.DataFrame
    variance: pd.DataFrame
    ranking: pd.DataFrame
    agreement: pd.DataFrame
    resolvable: pd.DataFrame
    plan: pd.DataFrame
    dictionaries: pd.DataFrame
    cost: pd.DataFrame
    similarity: pd.DataFrame = field(default_factory=pd.DataFrame)
    distance: pd.DataFrame = field(default_factory=pd.DataFrame)
    by: tuple[str, ...] = ("variant", "layer")
    folders: tuple[Path, ...] = ()
    findings: list[str] = field(default_factory=list)
    caveats: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {len(self.frame(name))} rows" for name in TABLES if name != "coverage")
        return f"Comparison of {', '.join(map(str, self.folders))} ({sizes})"

    def frame(self, name: str) -> pd.DataFrame:
        """The table of that name; `coverage` shows other columns of `main`."""
        found: pd.DataFrame = getattr(self, "main" if name == "coverage" else name)
        return found

    def columns(self, name: str) -> tuple[Column, ...]:
        """Those that are read, without such as hold nothing (`negatives` where no method has any)."""
        spec, frame = TABLES[name], self.frame(name)
        grouped = self.by if {"variant", "sae_id"} & set(self.by) else (*self.by, "control")
        wanted = (*_text(*grouped), *spec.columns) if spec.grouped else spec.columns
        kept = [
            column for column in wanted
            if not len(frame) or any(_told(frame, part) for part in column.parts[:1])
        ]  # fmt: skip
        return tuple(kept)

    def write(self, folder: str | Path) -> list[Path]:
        """Every table that has rows as parquet, CSV, markdown and LaTeX, and `comparison.md`; the paths."""
        folder = Path(folder)
        paths = []
        for name, spec in TABLES.items():
            if name != "coverage" and len(self.frame(name)):
                paths += formats.write(folder, name, self.frame(name), self.columns(name), spec.title)
        page = folder / "comparison.md"
        write_text(page, self.page())
        return [page, *paths]

    def page(self) -> str:
        """All tables in markdown, after what they say in words."""
        lines = ["# Comparison", "", f"Of {', '.join(plain_markdown(str(folder)) for folder in self.folders)}.", ""]
        lines += _section("Findings", self.findings) + _section("Caveats", self.caveats)
        for name, spec in TABLES.items():
            frame = self.frame(name)
            if not len(frame):
                continue
            lines += [f"## {spec.title}", "", formats.markdown(frame, self.columns(name))]
            if name != "coverage":
                lines += [f"All columns: `{name}.parquet`, `{name}.csv`.", ""]
        return "\n".join(lines).rstrip() + "\n"


def _section(title: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return []
    return [f"## {title}", "", *(f"- {plain_markdown(sentence)}" for sentence in sentences), ""]


def _told(frame: pd.DataFrame, column: str) -> bool:
    return column in frame and any(not formats.missing(value) and value != "" for value in frame[column])
