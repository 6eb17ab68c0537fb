"""Intervention: does steering the latent make a reader find the explanation in the text? (Paulo et al. 2024, 4.4)

Prompts end at the latent's first activation. They are continued with and without an edit. `add` adds to the
latent along its decoder direction, at the strength whose mean KL(intervened || clean) is the target; `zero`
clamps the latent to 0. The value of a prompt is log p(explanation | edited text) - log p(explanation | clean
text) in nats; the score is its mean. Additive scores are comparable at equal KL only, so the target is part of
the method's configuration. Removals have the effect they have: their KL is reported, and a true explanation is
expected to lose by them.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import get_args

from prompts import render
from prompts.requests import Edit, Failure, Likelihood, LikelihoodReply, Reply, Steer, SteerReply
from scoring.intervals import skewed_mean_metric
from scoring.types import Metric, Outcome, Subject, Window
from scoring.windows import judgement

NAME, VERSION, WINDOWS, METRIC = "intervention", "2", "prompts", "logprob_gain"
NEEDS = frozenset({Steer, Likelihood})
TEMPLATES = ("intervention.v1",)


@dataclass(frozen=True, kw_only=True)
class Config:
    edit: Edit = "add"
    """add: steer to the target KL; zero: remove the latent, its metrics named like logprob_gain@zero."""
    target_kl: float | Sequence[float] = 1.0
    """Mean KL(intervened || clean) of the next token, in nats, that the strength is tuned to; several give a score
    each, named like logprob_gain@0.33. Not read for a removal."""
    new_tokens: int = 8
    """Tokens generated after each prompt, at temperature 1."""
    seed: int = 0
    """Seed of the sampling; clean and steered continuations share their random numbers."""

    def __post_init__(self) -> None:
        if self.edit not in get_args(Edit):
            raise ValueError(f"edit is one of {', '.join(get_args(Edit))}, not {self.edit!r}")
        if not self.targets or not all(0 < target < math.inf for target in self.targets):
            raise ValueError(f"target_kl is one or more numbers above 0, not {self.target_kl!r}")
        if self.new_tokens < 1:
            raise ValueError(f"new_tokens is 1 at least, not {self.new_tokens}")

    @property
    def targets(self) -> list[float]:
        return [float(t) for t in (self.target_kl if isinstance(self.target_kl, Sequence) else [self.target_kl])]

    @property
    def steps(self) -> list[tuple[str, float]]:
        """What is steered to: the ending of its metrics' names, and the KL (0 for a removal, which has no target)."""
        if self.edit == "zero":
            return [("@zero", 0.0)]
        return [("" if len(self.targets) == 1 else f"@{target:g}", target) for target in self.targets]


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Steer] | list[Likelihood], Sequence[Reply], list[Outcome]]:
    names = [name for name, _ in config.steps]
    if not windows:
        return [Outcome((), tuple(skewed_mean_metric(METRIC + name, [], 0) for name in names)) for _ in subjects]
    prompts = tuple(window.tokens for window in windows)
    latent, pole, new, seed = subjects[0].latent, subjects[0].pole, config.new_tokens, config.seed
    # One list, so that all targets are searched in the same passes.
    steered = yield [
        Steer(latent, prompts, target, new, seed, edit=config.edit, pole=pole) for _, target in config.steps
    ]
    passages = [
        render.text(TEMPLATES[0], passage=prompt + continuation)
        for reply in steered
        if isinstance(reply, SteerReply)
        for continuations in (reply.clean, reply.steered)
        for prompt, continuation in zip(reply.prompt_texts, continuations, strict=True)
    ]
    # Clean continuations come once for all targets; each passage is read once.
    passages = list(dict.fromkeys(passages))
    # The closing quote is read off too: a short explanation is then not merely the start of a longer one.
    asked = [Likelihood(passage, f'{s.explanation}"') for passage in passages for s in subjects]
    replies = (yield asked) if asked else []
    outcomes = []
    for i in range(len(subjects)):
        read = dict(zip(passages, replies[i :: len(subjects)], strict=True))
        parts = [_outcome(windows, reply, read, name, config.edit) for reply, name in zip(steered, names, strict=True)]
        outcomes.append(_joined(parts))
    return outcomes


def _joined(parts: Sequence[Outcome]) -> Outcome:
    """Of several targets."""
    return Outcome(
        tuple(judged for part in parts for judged in part.judgements),
        tuple(metric for part in parts for metric in part.metrics),
    )


def _outcome(windows: Sequence[Window], steered: Reply, read: Mapping[str, Reply], name: str, edit: Edit) -> Outcome:
    if not isinstance(steered, SteerReply):
        return _failed(windows, steered, name)
    before_and_after = [
        [read[render.text(TEMPLATES[0], passage=a + b)] for a, b in zip(steered.prompt_texts, said, strict=True)]
        for said in (steered.clean, steered.steered)
    ]
    judgements, gains = [], []
    rows = zip(windows, *before_and_after, steered.clean, steered.steered, strict=True)
    for window, before, after, clean_text, steered_text in rows:
        gain = None
        if isinstance(before, LikelihoodReply) and isinstance(after, LikelihoodReply):
            gain = after.logprob - before.logprob
            gains.append(gain)
        status = "ok" if gain is not None else "failed"
        judgements.append(
            judgement(
                window, after, labelled=False, probability=gain, status=status, clean_text=clean_text,
                steered_text=steered_text,
            )
        )  # fmt: skip
    metric = skewed_mean_metric(METRIC + name, gains, n_failed=len(windows) - len(gains))
    if metric.status == "ok" and not steered.converged:
        # Off the target the number cannot be compared with others, so it is withheld; the reached KL is kept.
        metric = replace(metric, value=None, ci_low=None, ci_high=None, ci_method="", status="not_converged")
    reached = Metric("reached_kl" + name, steered.reached_kl, len(windows), 0, None, None, "", "ok")
    if edit == "zero":
        return Outcome(tuple(judgements), (metric, reached))
    strength = Metric("strength" + name, steered.strength, len(windows), 0, None, None, "", "ok")
    return Outcome(tuple(judgements), (metric, reached, strength))


def _failed(windows: Sequence[Window], reply: Reply, name: str) -> Outcome:
    status = reply.kind if isinstance(reply, Failure) else "failed"
    judgements = tuple(judgement(window, reply, labelled=False, status=status) for window in windows)
    return Outcome(judgements, (Metric(METRIC + name, None, 0, len(windows), None, None, "", "failed"),))
