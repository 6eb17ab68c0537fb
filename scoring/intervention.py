"""Intervention: does steering the latent make a reader find the explanation in the text? (Paulo et al. 2024, 4.4)

Prompts end at the latent's first activation. They are continued with and without an additive edit along
the decoder direction, at the strength whose mean KL(intervened || clean) is the target. The value of a
prompt is log p(explanation | steered text) - log p(explanation | clean text) in nats; the score is its
mean. Scores are comparable at equal KL only, so the target is part of the method's version.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace

from prompts import render
from prompts.requests import Failure, Likelihood, LikelihoodReply, Reply, Steer, SteerReply
from scoring.intervals import mean_metric
from scoring.types import Metric, Outcome, Subject, Window
from scoring.windows import judgement

NAME, VERSION, WINDOWS, METRIC = "intervention", "1", "prompts", "logprob_gain"
NEEDS = frozenset({Steer, Likelihood})
TEMPLATES = ("intervention.v1",)


@dataclass(frozen=True, kw_only=True)
class Config:
    target_kl: float = 1.0
    """Mean KL(intervened || clean) of the next token, in nats, that the strength is tuned to."""
    new_tokens: int = 8
    """Tokens generated after each prompt, at temperature 1."""
    seed: int = 0
    """Seed of the sampling; clean and steered continuations share their random numbers."""


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Steer] | list[Likelihood], Sequence[Reply], list[Outcome]]:
    if not windows:
        return [Outcome((), (mean_metric(METRIC, [], 0),)) for _ in subjects]
    request = Steer(
        latent=subjects[0].latent,
        prompts=tuple(window.tokens for window in windows),
        target_kl=config.target_kl,
        max_new_tokens=config.new_tokens,
        seed=config.seed,
    )
    (steered,) = yield [request]
    if not isinstance(steered, SteerReply):
        return [_failed(windows, steered) for _ in subjects]
    passages = [
        render.text(TEMPLATES[0], passage=prompt + continuation)
        for continuations in (steered.clean, steered.steered)
        for prompt, continuation in zip(steered.prompt_texts, continuations, strict=True)
    ]
    # The closing quote is read off too: a short explanation is then not merely the start of a longer one.
    replies = yield [Likelihood(passage, f'{s.explanation}"') for passage in passages for s in subjects]
    n, m = len(windows), len(subjects)
    return [
        _outcome(windows, steered, replies[i : n * m : m], replies[n * m + i :: m]) for i in range(m)
    ]  # fmt: skip


def _outcome(
    windows: Sequence[Window], steered: SteerReply, clean_replies: Sequence[Reply], steered_replies: Sequence[Reply]
) -> Outcome:
    judgements, gains = [], []
    rows = zip(windows, clean_replies, steered_replies, steered.clean, steered.steered, strict=True)
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
    metric = mean_metric(METRIC, gains, n_failed=len(windows) - len(gains))
    if metric.status == "ok" and not steered.converged:
        # Off the target the number cannot be compared with others, so it is withheld; the reached KL is kept.
        metric = replace(metric, value=None, ci_low=None, ci_high=None, ci_method="", status="not_converged")
    reached = Metric("reached_kl", steered.reached_kl, len(windows), 0, None, None, "", "ok")
    strength = Metric("strength", steered.strength, len(windows), 0, None, None, "", "ok")
    return Outcome(tuple(judgements), (metric, reached, strength))


def _failed(windows: Sequence[Window], reply: Reply) -> Outcome:
    status = reply.kind if isinstance(reply, Failure) else "failed"
    judgements = tuple(judgement(window, reply, labelled=False, status=status) for window in windows)
    return Outcome(judgements, (Metric(METRIC, None, 0, len(windows), None, None, "", "failed"),))
