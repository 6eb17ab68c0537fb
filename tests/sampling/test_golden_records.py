"""A small store whose records are written down: whoever changes the draws sees it here, and says so in the changelog.

Rows of finished runs name their windows; another draw makes all of them stale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import planted_store
import pytest
from planted_store import Planted

from scoring.types import Window

NEGATIVES = ("random", "same_token", "cofiring")
GOLDEN: dict[tuple[int, int, bool], dict[str, str]] = {
    (0, 1, False): {
        "explain": (
            "activating: 70-8/0 45-8/1 82-9/2 198-7/3"
            "; random: 3d-8 260-8"
            "; hard:same_token: 258-8 2be-9"
            "; hard:cofiring: 93-8 78-9"
        ),
        "score": (
            "activating: 1b0-8/0 1f7-8/1 2af-7/2 2e-5/3 a0-7/3"
            "; random: 1a-7 236-5 17d-8"
            "; hard:same_token: 9-8 1a8-8 12f-8"
            "; hard:cofiring: 229-7 21-7 d0-9"
        ),
        "prompts": "activating: 1aa-c/0 208-a/3 16c-5/4",
    },
    (0, 1, True): {
        "explain": (
            "activating: 6f-8/0 41-8/1 86-9/2 198-7/3"
            "; random: 260-8 104-a"
            "; hard:same_token: 258-8 2be-9"
            "; hard:cofiring: 93-8 78-9"
        ),
        "score": (
            "activating: 1b0-8/0 1f6-8/1 2af-7/2 2c-5/3 a0-7/3"
            "; random: 1a-7 236-5 17d-8"
            "; hard:same_token: 9-8 1a8-8 12f-8"
            "; hard:cofiring: 229-7 21-7 d0-9"
        ),
        "prompts": "activating: 1aa-c/0 208-a/3 16c-5/4",
    },
    (2, 1, False): {
        "explain": (
            "activating: 2d0-7/0 2be-9/1 93-8/2 24d-8/3"
            "; random: 3d-8 29b-8"
            "; hard:same_token: 118-5 190-8"
            "; hard:cofiring: 10e-a 161-7"
        ),
        "score": (
            "activating: 1da-6/0 1b0-8/0 12f-8/1 211-8/2 1ee-9/3"
            "; random: ae-7 28-6 11e-9"
            "; hard:same_token: 208-9 1d4-6 1f7-8"
            "; hard:cofiring: 2af-7 1cb-8 127-8"
        ),
        "prompts": "activating: 1aa-c/0 222-6/2 8-c/4",
    },
    (2, 1, True): {
        "explain": (
            "activating: 2d0-7/0 2be-9/1 93-8/2 249-8/3"
            "; random: 3d-8 29b-8"
            "; hard:same_token: 118-5 190-8"
            "; hard:cofiring: 10e-a 161-7"
        ),
        "score": (
            "activating: 1d8-6/0 1b0-8/0 12c-8/1 210-8/2 1ee-9/3"
            "; random: ae-7 28-6 11e-9"
            "; hard:same_token: 1f7-8 1a8-8 1e7-6"
            "; hard:cofiring: 2af-7 1cb-8 229-7"
        ),
        "prompts": "activating: 1aa-c/0 222-6/2 8-c/4",
    },
    (2, -1, False): {
        "explain": (
            "activating: 186-a/0 2e1-8/1 70-8/2 34-9/3"
            "; random: 3d-8 29b-8"
            "; hard:same_token: 10e-a 15a-7"
            "; hard:cofiring: 245-8 78-9"
        ),
        "score": (
            "activating: 1c3-8/0 e1-8/1 2a8-7/1 a7-7/2 1ff-8/3"
            "; random: 230-6 2e-5 208-9"
            "; hard:same_token: 17d-8 bf-9 219-8"
            "; hard:cofiring: 1f7-8 1ba-9 127-8"
        ),
        "prompts": "activating: d9-c/0 a0-c/2 230-b/3",
    },
    (2, -1, True): {
        "explain": (
            "activating: 186-a/0 2e1-8/1 6e-8/2 35-9/3"
            "; random: 29b-8 15a-7"
            "; hard:same_token: 10e-a 161-7"
            "; hard:cofiring: 245-8 78-9"
        ),
        "score": (
            "activating: 1c4-8/0 e0-8/1 2a9-7/1 a8-7/2 1fd-8/3"
            "; random: 230-6 2e-5 208-9"
            "; hard:same_token: 17d-8 bf-9 219-8"
            "; hard:cofiring: 1ba-9 127-8 1d4-6"
        ),
        "prompts": "activating: d9-c/0 a0-c/2 230-b/3",
    },
    (3, 1, False): {
        "explain": "random: 3d-8 82-9",
        "score": "random: 2f2-6 229-7 9-8",
        "prompts": "",
    },
    (3, 1, True): {
        "explain": "random: 3d-8 82-9",
        "score": "random: 2f2-6 229-7 9-8",
        "prompts": "",
    },
}


def tiny() -> Planted:
    """Plain arithmetic, so that no generator has a say: 20 contexts of 40 tokens, documents of 25."""
    at = np.arange(800)
    tokens = ((at * at * 7 + 3 * at + at // 11) % 97).astype(np.int32)
    owners = np.where(at % 26 < 25, at // 26, -1).astype(np.int32)
    size = ((at * 37 % 101) + 1) / 101
    one = np.where((at * 17 % 23 == 0) & (owners >= 0), size, 0)
    other = np.where(((at * 17 % 46 == 0) | (at % 29 == 7)) & (owners >= 0), size, 0)
    signed = np.where((at * 5 % 19 == 0) & (owners >= 0), size * np.where(at % 3, 1, -1), 0)
    fires = {0: one.astype(np.float32), 1: other.astype(np.float32), 2: signed.astype(np.float32)}
    return Planted(tokens.reshape(20, 40), owners.reshape(20, 40), fires, 4)


def summary(windows: tuple[Window, ...]) -> str:
    """`kind: ids` of windows, in their order."""
    kinds: dict[str, list[str]] = {}
    for w in windows:
        kinds.setdefault(w.kind, []).append(w.window_id if w.quantile is None else f"{w.window_id}/{w.quantile}")
    return "; ".join(f"{kind}: {' '.join(ids)}" for kind, ids in kinds.items())


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("latent", "pole"), [(0, 1), (2, 1), (2, -1), (3, 1)])
def test_golden(tmp_path: Path, latent: int, pole: int, centred: bool) -> None:
    sampler = planted_store.sampler(
        tiny().write(tmp_path), seed=0, window=10, shortest=5, centred=centred, quantiles=4, explain_activating=4,
        score_activating=5, explain_random=2, score_random=3, explain_negatives=NEGATIVES, score_negatives=NEGATIVES,
        prompts=3, prompt_tokens=12,
    )  # fmt: skip
    record = sampler.record(latent, pole)
    found = {name: summary(getattr(record, name)) for name in ("explain", "score", "prompts")}
    assert found == GOLDEN[latent, pole, centred]
