"""Intervention: does steering the latent make a reader find the explanation in the text? (Paulo et al. 2024, 4.4)

Prompts end at the latent's first activation. They are continued with and without an additive edit along
the decoder direction, at the strength whose mean KL(intervened || clean) is the target. The value of a
prompt is log p(explanation | steered text) - log p(explanation | clean text) in nats; the score is its
mean. Scores are comparable at equal KL only, so the target is part of the method's version.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
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
    target_kl: float | Sequence[float] = 1.0
    """Mean KL(intervened || clean) of the next token, in nats, that the strength is tuned to; several give a score
    each, named like logprob_gain@0.33."""
    new_tokens: int = 8
    """Tokens generated after each prompt, at temperature 1."""
    seed: int = 0
    """Seed of the sampling; clean and steered continuations share their random numbers."""


def score(
    subjects: Sequence[Subject], windows: Sequence[Window], config: Config
) -> Generator[list[Steer] | list[Likelihood], Sequence[Reply], list[Outcome]]:
    targets = config.target_kl if isinstance(config.target_kl, Sequence) else [config.target_kl]
    names = ["" if len(targets) == 1 else f"@{target:g}" for target in targets]
    if not windows:
        return [Outcome((), tuple(mean_metric(METRIC + name, [], 0) for name in names)) for _ in subjects]
    prompts = tuple(window.tokens for window in windows)
    latent, new, seed = subjects[0].latent, config.new_tokens, config.seed
    # One list, so that all targets are searched in the same passes.
    steered = yield [Steer(latent, prompts, float(target), new, seed) for target in targets]
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
        parts = [_outcome(windows, reply, read, name) for reply, name in zip(steered, names, strict=True)]
        outcomes.append(_joined(parts))
    return outcomes


def _joined(parts: Sequence[Outcome]) -> Outcome:
    """Of several targets."""
    return Outcome(
        tuple(judged for part in parts for judged in part.judgements),
        tuple(metric for part in parts for metric in part.metrics),
    )


def _outcome(windows: Sequence[Window], steered: Reply, read: Mapping[str, Reply], name: str) -> Outcome:
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
    metric = mean_metric(METRIC + name, gains, n_failed=len(windows) - len(gains))
    if metric.status == "ok" and not steered.converged:
        # Off the target the number cannot be compared with others, so it is withheld; the reached KL is kept.
        metric = replace(metric, value=None, ci_low=None, ci_high=None, ci_method="", status="not_converged")
    reached = Metric("reached_kl" + name, steered.reached_kl, len(windows), 0, None, None, "", "ok")
    strength = Metric("strength" + name, steered.strength, len(windows), 0, None, None, "", "ok")
    return Outcome(tuple(judgements), (metric, reached, strength))


def _failed(windows: Sequence[Window], reply: Reply, name: str) -> Outcome:
    status = reply.kind if isinstance(reply, Failure) else "failed"
    judgements = tuple(judgement(window, reply, labelled=False, status=status) for window in windows)
    return Outcome(judgements, (Metric(METRIC + name, None, 0, len(windows), None, None, "", "failed"),))
