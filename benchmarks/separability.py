"""Whether decoys of fuzzing can be told from true marks without reading: balanced accuracy of rules that only look.

The fuzz sets of many latents are drawn as a run draws them. What can be seen of each window without its meaning is
written down: how many tokens are marked and where, their runs and gaps, how frequent they are in the corpus, and their
class. Rules are fitted on some latents and tried on others. Chance is 0.5; the acceptance line is 0.55.

Figures are of the store of a run (`--run`); without one, of docstrings with planted latents that fire on words.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _bench import Figures, parser
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from autointerp.collect.tokenise import tokenise
from autointerp.collect.tokens import NO_DOCUMENT
from autointerp.config import DataSettings, SamplingSettings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.sampling.sampler import Sampler
from autointerp.store.reader import LatentStore
from autointerp.store.writer import StoreWriter
from autointerp.subject.load import SubjectModel, load_subject
from sae.codes import SparseCodes
from scoring.decoys import MOVED
from scoring.fuzzing import Config, fuzz_set
from scoring.types import Window

LIMIT = 0.55
SIZES = {"full": (300, 500_000), "small": (80, 100_000)}
FOLDS = 5
DEMO = Path(__file__).parent.parent / "results" / "demo"
POSITIONS = 32

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Judged:
    """Every judged window of all latents: what can be seen of it, whether its marks are true, its kind and latent."""

    x: Floats
    names: list[str]
    patterns: list[str]
    true: NDArray[np.bool_]
    kind: NDArray[Any]
    latent: NDArray[np.int64]
    repeats: Floats
    """Share of the other windows in its request whose marked tokens begin with the same token."""

    def against(self, moved: bool) -> NDArray[np.intp]:
        return np.flatnonzero(self.true | ((self.kind == MOVED) == moved))


def plant(subject: SubjectModel, folder: Path, n_tokens: int, n_latents: int = 400) -> None:
    """Latents that fire on one to four tokens each, mostly rare ones, and now and then on the token after."""
    blocks = tokenise(subject, DataSettings(dataset="docstrings", tokens=n_tokens), folder, seed=0, skip_documents=0)
    rng = np.random.default_rng(0)
    flat = blocks.tokens.reshape(-1)
    counts = np.bincount(flat)
    usable = np.flatnonzero(counts >= 40)
    owner = np.full(len(counts), -1)
    order = rng.permutation(usable)[: 4 * n_latents]
    owner[order] = np.minimum(rng.geometric(0.5, size=len(order)).cumsum() // 2, n_latents - 1)
    at = np.flatnonzero(blocks.documents.reshape(-1) != NO_DOCUMENT)
    mine = owner[flat]
    before = np.roll(mine, 1)
    latents = np.where(mine >= 0, mine, np.where((before >= 0) & (rng.random(len(mine)) < 0.3), before, -1))[at]
    fires = latents >= 0
    offsets = np.concatenate([[0], np.cumsum(fires)])
    values = (rng.random(int(fires.sum())) + 0.2).astype(np.float32)
    codes = SparseCodes(
        torch.from_numpy(offsets), torch.from_numpy(latents[fires]), torch.from_numpy(values), n_latents
    )
    writer = StoreWriter(folder, {"benchmark": "separability"}, n_latents)
    writer.add(slice(0, len(blocks.tokens)), at, codes)
    writer.finalise()


CLASSES = {
    "space": lambda p: p[:1] == " ",
    "word": lambda p: p.strip().isalpha(),
    "digit": lambda p: any(c.isdigit() for c in p),
    "capital": lambda p: p.strip()[:1].isupper(),
    "punctuation": lambda p: bool(p.strip()) and not any(c.isalnum() for c in p),
    "blank": lambda p: not p.strip(),
}


def seen(window: Window, places: Sequence[int], log_frequency: Floats) -> dict[str, float]:
    """What is seen of a marked window without reading it."""
    at, length = np.array(places), len(window.tokens)
    gaps = np.diff(at)
    runs = np.diff(np.concatenate([[-1], np.flatnonzero(gaps > 1), [len(at) - 1]]))
    wide = gaps[gaps > 1] - 1
    rare = log_frequency[[window.tokens[i] for i in places]]
    pieces = [window.pieces[i] for i in places]
    found: dict[str, float] = {
        "marks": len(at), "tokens": length, "fraction": len(at) / length,
        "first": at[0], "last": at[-1], "mean place": at.mean(), "to the end": length - 1 - at[-1],
        "at the start": at[0] == 0, "at the end": at[-1] == length - 1, "relative place": at.mean() / length,
        "span": at[-1] - at[0], "runs": len(runs), "longest run": runs.max(), "mean run": runs.mean(),
        "widest gap": wide.max(initial=0), "mean gap": wide.mean() if len(wide) else 0.0,
        "log-frequency": rare.mean(), "least log-frequency": rare.min(), "largest log-frequency": rare.max(),
        "letters": float(np.mean([len(p.strip()) for p in pieces])),
    }  # fmt: skip
    found |= {name: float(np.mean([test(p) for p in pieces])) for name, test in CLASSES.items()}
    found |= {f"place {i}": float(i in places) for i in range(POSITIONS)}
    return found


def collect(sampler: Sampler, latents: Sequence[int], config: Config, known: bool) -> tuple[Judged, int]:
    counts = np.bincount(np.asarray(sampler.store.tokens).reshape(-1))
    log_frequency = np.log((counts + 0.5) / counts.sum())
    frequency: Mapping[int, float] | None = dict(enumerate((counts / counts.sum()).tolist())) if known else None
    rows: list[dict[str, float]] = []
    about: list[tuple[str, bool, str, int]] = []
    repeats: list[float] = []
    skipped = 0
    for latent in latents:
        fuzz = fuzz_set(sampler.record(latent).score, config, frequency)
        skipped += fuzz.skipped
        marked = [(window, places, True, window.kind) for window, places in fuzz.positives]
        marked += [(decoy.window, decoy.places, False, kind) for kind, decoy in fuzz.decoys]
        order = np.random.default_rng(latent).permutation(len(marked))
        marked = [marked[i] for i in order]
        heads = [window.pieces[places[0]].strip().lower() for window, places, *_ in marked]
        for i, (window, places, true, kind) in enumerate(marked):
            begin = i - i % config.per_request
            group = heads[begin : begin + config.per_request]
            repeats.append((group.count(heads[i]) - 1) / max(len(group) - 1, 1))
            rows.append(seen(window, places, log_frequency))
            about.append((str([p - places[0] for p in places]), true, kind, latent))
    names = list(rows[0])
    x = np.array([[row[name] for name in names] for row in rows])
    patterns, true, kind, latent_of = zip(*about, strict=True)
    return Judged(
        x, names, list(patterns), np.array(true), np.array(kind), np.array(latent_of), np.array(repeats)
    ), skipped  # fmt: skip


def threshold_rule(x: Floats, y: NDArray[np.bool_]) -> tuple[float, bool]:
    """The threshold, and the side of it that is called true, of the best balanced accuracy."""
    order = np.argsort(x, kind="stable")
    value, label = x[order], y[order]
    # Rates among true and decoys of what lies at or below each value.
    below = np.cumsum(label) / label.sum() - np.cumsum(~label) / (~label).sum()
    below = np.where(np.append(np.diff(value) > 0, True), below, 0.0)
    best = int(np.abs(below).argmax())
    return float(value[best]), bool(below[best] > 0)


def attack(judged: Judged, at: NDArray[np.intp]) -> dict[str, float]:
    """Balanced accuracy of every rule on latents it was not fitted on."""
    x, y, groups = judged.x[at], judged.true[at], judged.latent[at]
    patterns = np.array(judged.patterns)[at]
    columns = {**{name: x[:, i] for i, name in enumerate(judged.names)}, "repeats": judged.repeats[at]}
    said: dict[str, NDArray[np.bool_]] = {name: np.zeros(len(y), dtype=np.bool_) for name in columns}
    said |= {name: np.zeros(len(y), dtype=np.bool_) for name in ("pattern", "logistic regression", "boosted trees")}
    for fit, test in GroupKFold(FOLDS).split(x, y, groups):
        for name, column in columns.items():
            limit, low = threshold_rule(column[fit], y[fit])
            said[name][test] = (column[test] <= limit) == low
        wrong, right = Counter(patterns[fit][~y[fit]]), Counter(patterns[fit][y[fit]])
        # The pattern that decoys have most often, and those that they have more often than their share.
        share = {p: wrong[p] / (~y[fit]).sum() - right[p] / y[fit].sum() for p in {*wrong, *right}}
        said["pattern"][test] = [share.get(p, 0.0) <= 0 for p in patterns[test]]
        linear = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        said["logistic regression"][test] = linear.fit(x[fit], y[fit]).predict(x[test])
        trees = HistGradientBoostingClassifier(class_weight="balanced", max_iter=150, random_state=0)
        said["boosted trees"][test] = trees.fit(x[fit], y[fit]).predict(x[test])
    return {name: float(balanced_accuracy_score(y, guess)) for name, guess in said.items()}


def report(figures: Figures, judged: Judged) -> None:
    for name, moved in (("moved", True), ("non-activating", False)):
        at = judged.against(moved)
        found = attack(judged, at)
        repeats = found.pop("repeats")
        rules = {rule: found.pop(rule) for rule in ("pattern", "logistic regression", "boosted trees")}
        ranked = sorted(found, key=lambda feature: -found[feature])
        figures.add(f"{name}: judged windows", len(at), note=f"{int((~judged.true[at]).sum())} decoys")
        note = ", ".join(f"{other} {found[other]:.3f}" for other in ranked[1:4])
        figures.add(f"{name}: best single feature", found[ranked[0]], LIMIT, note=f"{ranked[0]}; then {note}")
        for rule, value in rules.items():
            figures.add(f"{name}: {rule}", value, LIMIT)
        figures.add(f"{name}: same token marked in the request", repeats, note="needs several windows; no line")


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.add_argument("--run", type=Path, help="the folder of a run with a finished store (default: results/demo)")
    made.add_argument("--planted", action="store_true", help="make a store even where there is one of results/demo")
    made.add_argument("--latents", type=int, help="how many live latents are looked at")
    made.add_argument("--negatives", nargs="+", default=["random"], help="sources of non-activating windows")
    made.add_argument(
        "--estimated", action="store_true", help="let the scorer estimate token frequencies, as without a store"
    )
    arguments = made.parse_args()
    n_latents, n_tokens = SIZES[arguments.size]
    run = arguments.run or (DEMO if (DEMO / "store").is_dir() and not arguments.planted else None)
    draw = SamplingSettings(explain_random=0, prompts=0, score_negatives=tuple(arguments.negatives))
    folder = Path(tempfile.mkdtemp(prefix="autointerp-bench-"))
    try:
        subject = load_subject(str(demo_subject()))
        if run is None:
            plant(subject, folder, n_tokens)
        where = folder if run is None else next((run / "store").rglob("manifest.json")).parent
        store = LatentStore.open(where)
        sampler = Sampler(store, subject, draw, seed=0)
        live = np.flatnonzero(sampler.window_counts() >= draw.min_windows)
        latents = np.random.default_rng(2).permutation(live)[: arguments.latents or n_latents].tolist()
        with threadpool_limits(arguments.threads):
            judged, skipped = collect(sampler, latents, Config(), not arguments.estimated)
            figures = Figures(
                "telling decoys without reading",
                setting={"latents": len(latents), "store": "planted" if run is None else str(run), "skipped": skipped},
            )
            report(figures, judged)
        figures.finish(arguments)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
