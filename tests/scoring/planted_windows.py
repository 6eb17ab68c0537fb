"""Windows with a known label, and figures of what they come to."""

from __future__ import annotations

from scoring.types import ACTIVATING, RANDOM, Metric, Outcome, Subject, Window

CAT = Subject(7, "cat", "e0")
DOG = Subject(7, "dog", "e1", "shuffled_explanation")


def window(i: int, activating: bool, text: str | None = None, strength: float = 1.0) -> Window:
    """Window `w<i>`; says `cat` exactly if it is activating, unless a text is given."""
    said = text if text is not None else f"text {i} about a {'cat' if activating else 'tree'} here"
    return Window(
        window_id=f"w{i}",
        document=i,
        start=10 * i,
        kind=ACTIVATING if activating else RANDOM,
        pieces=("<s>", said),
        tokens=(1, 100 + i),
        activations=(0.0, strength if activating else 0.0),
        quantile=i % 10 if activating else None,
        text=said,
    )


def windows(n: int, m: int | None = None) -> list[Window]:
    """`n` activating windows, then `m` others (default: as many)."""
    others = range(n, n + (n if m is None else m))
    return [window(i, True, strength=1 + i) for i in range(n)] + [window(i, False) for i in others]


def figures(outcome: Outcome, name: str = "balanced_accuracy") -> list[Metric]:
    """Of one metric, against each kind of negatives."""
    return [metric for metric in outcome.metrics if metric.metric == name]
