"""Windows, explanations, judgements and scores: what every scorer takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ACTIVATING = "activating"
RANDOM = "random"
HARD = "hard:"
"""Kinds of windows: activating, drawn at random, or `hard:<source>`."""

SHUFFLED, GENERIC = "shuffled_explanation", "generic_explanation"
EXPLANATION_CONTROLS = (SHUFFLED, GENERIC, "random_explanation")
"""Controls that grade the same latent with another explanation. The others (random_sae, random_model,
neurons_topk) replace what is explained, and have explanations of their own."""

MIXED = "mixed"
"""Stands for all kinds of non-activating windows together, where there are several."""

Status = Literal["ok", "failed", "too_few_windows", "no_explanation", "not_converged", "constant"]
"""Why a number is there or not; `constant`: a correlation with answers that are all alike."""


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of one document, cut into token pieces, with one latent's activation at each of them.

    `kind` is `activating`, `random`, or `hard:<source>`. `quantile` (0 = weakest) is set for activating
    windows only. `start` is the position of the first token in the store's token array.
    """

    window_id: str
    document: int
    start: int
    kind: str
    pieces: tuple[str, ...]
    tokens: tuple[int, ...]
    activations: tuple[float, ...]
    quantile: int | None = None
    text: str = ""

    def __post_init__(self) -> None:
        if not len(self.pieces) == len(self.tokens) == len(self.activations):
            raise ValueError(
                f"window {self.window_id}: {len(self.pieces)} pieces, {len(self.tokens)} tokens and "
                f"{len(self.activations)} activations; there has to be one of each per position"
            )
        if not self.text:
            object.__setattr__(self, "text", "".join(self.pieces))

    @property
    def activating(self) -> bool:
        return self.kind == ACTIVATING

    @property
    def peak(self) -> int:
        """Position (within the window) of the activation that is largest in magnitude."""
        return max(range(len(self.activations)), key=lambda i: abs(self.activations[i]))


@dataclass(frozen=True, slots=True)
class Subject:
    """What a scorer grades: one explanation of one latent.

    `latent` is an index into the SAE and `pole` the sign of the activations that are explained; scorers that intervene
    need them, the others only pass them on.
    """

    latent: int
    explanation: str
    explanation_id: str = ""
    control: str = "none"
    pole: int = 1


@dataclass(frozen=True, slots=True)
class Judgement:
    """One graded window. `prediction` and `probability` are None where the answer failed."""

    window_id: str
    kind: str
    quantile: int | None
    label: bool | None
    prediction: bool | None = None
    probability: float | None = None
    status: str = "ok"
    reply_sha: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    clean_text: str | None = None
    steered_text: str | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """One number with its interval. A number that cannot be computed is None, with the status that says why."""

    metric: str
    value: float | None
    n: int
    n_failed: int
    ci_low: float | None
    ci_high: float | None
    ci_method: str
    status: Status = "ok"
    negatives: str | None = None
    """Kind of the non-activating windows that went into it (`random`, `hard:<source>`), `mixed` for all kinds together,
    None where there are none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a scorer returns: every judged window and the metrics drawn from them."""

    judgements: tuple[Judgement, ...]
    metrics: tuple[Metric, ...]
