"""The committed example is small, whole, and what the README and its own page say of it."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd

from autointerp.config import resolve

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "docs" / "example"
ORDER = ["topk", "batchtopk", "matryoshka", "jumprelu", "random_sae", "random_model", "neurons_topk"]
METHODS = {"embedding": "embedding, AUROC", "surprisal": "surprisal, AUROC", "intervention": "intervention, nats"}


def readme_table() -> str:
    """Real minus shuffled, over all layers, with its interval: what the README shows of `by-variant/main.csv`."""
    main = pd.read_csv(EXAMPLE / "by-variant" / "main.csv").set_index(["variant", "method"])
    lines = [f"| | latents | {' | '.join(METHODS.values())} |", "|---|---:|" + "---:|" * len(METHODS)]
    for variant in ORDER:
        cells = []
        for method in METHODS:
            row = main.loc[variant, method]
            bounds = f"{row['difference_low']:+.3f}, {row['difference_high']:+.3f}"
            cells.append(f"{row['difference']:+.3f} [{bounds}]" if pd.notna(row["difference"]) else row["status"])
        lines.append(f"| {variant} | {main.loc[variant, 'embedding']['n']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def test_example_is_small() -> None:
    assert sum(path.stat().st_size for path in EXAMPLE.rglob("*") if path.is_file()) < 3_000_000


def test_its_yaml_is_of_what_was_asked() -> None:
    settings = resolve({}, config=EXAMPLE / "study.yaml", environ={})
    assert len(settings.train.architectures) >= 4 and len(settings.train.hookpoints) == 3
    assert settings.study.controls == ("random_sae", "random_model", "neurons") and settings.study.draws >= 3
    assert set(settings.score.methods) == set(METHODS)


def test_main_table_holds_every_variant_layer_and_method() -> None:
    main = pd.read_parquet(EXAMPLE / "comparison" / "main.parquet")
    assert set(main["variant"]) == set(ORDER)
    assert (main.groupby("variant").size() == 3 * len(METHODS)).all()
    known = main[main["value"].notna()]
    assert (known["ci_low"] <= known["value"]).all() and (known["value"] <= known["ci_high"]).all()


def test_readme_shows_the_main_table() -> None:
    found = re.search(r"<!-- example -->\n(.*?)\n<!-- /example -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    assert found.group(1).strip() == readme_table()


def test_report_lists_every_scored_latent() -> None:
    text = (EXAMPLE / "report" / "index-000.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("{") : text.rindex("}") + 1])
    scored = pd.read_parquet(EXAMPLE / "comparison" / "dictionaries.parquet")["scored"].sum()
    assert index["head"]["latents"] >= scored > 0
    assert all((EXAMPLE / "report" / name).is_file() for name in ("index.html", "report.js", "data-000.js"))


if __name__ == "__main__":
    sys.stdout.write(readme_table() + "\n")
