"""Intervention scores on the real subject model: directions planted to say a word are scored above their control."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from autointerp.clients.hf import HFClient
from autointerp.collect.docstrings import docstrings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.subject.steer import SteerClient
from prompts.requests import Likelihood, Reply, Steer, SteerReply
from sae.architectures import topk
from sae.base import SparseAutoencoder
from scoring import intervention
from scoring.intervals import mean_metric
from scoring.types import Metric, Outcome, Subject, Window

HOOKPOINT = "layers.25"
WORDS = ("music", "money")
N = 30

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def real() -> SubjectModel:
    return load_subject(str(demo_subject()))


def planted_sae(real: SubjectModel) -> SparseAutoencoder:
    """One latent per word, its direction the mean unembedding of the 12 tokens nearest to the word's."""
    unembedding = real.model.get_output_embeddings().weight.detach()
    unit = unembedding / unembedding.norm(dim=1, keepdim=True)
    model = topk.create({"d_in": unembedding.shape[1], "n_latents": len(WORDS), "k": 1})
    with torch.no_grad():
        for latent, word in enumerate(WORDS):
            (token,) = real.tokenizer(" " + word, add_special_tokens=False)["input_ids"]
            near = (unit @ unit[token]).topk(12).indices
            direction = unembedding[near].mean(dim=0) - unembedding.mean(dim=0)
            model.W_dec[latent] = direction / direction.norm()
            model.encoder[latent] = model.W_dec[latent]
    return model


def real_prompts(real: SubjectModel) -> list[Window]:
    """The first 16 tokens of docstrings."""
    rows = (tuple(real.tokenizer(text)["input_ids"][:16]) for text in docstrings(0))
    chosen = itertools.islice((row for row in rows if len(row) == 16), N)
    return [
        Window(f"w{i}", i, 0, "activating", real.pieces(row), row, (0.0,) * 15 + (1.0,)) for i, row in enumerate(chosen)
    ]


class Run:
    """One latent scored with its own word and the other latent's, the reader's answers kept."""

    def __init__(self, real: SubjectModel, latent: int) -> None:
        self.windows, self.reader = real_prompts(real), HFClient(real)
        self.subjects = [
            Subject(latent, WORDS[latent]),
            Subject(latent, WORDS[1 - latent], control="shuffled_explanation"),
        ]
        (request,) = next(self.asking())
        assert isinstance(request, Steer)
        self.steered = SteerClient(real, planted_sae(real), HOOKPOINT).steer(request)
        self.read: dict[Likelihood, Reply] = {}

    def asking(self) -> Generator[list[Steer] | list[Likelihood], Sequence[Reply], list[Outcome]]:
        return intervention.score(self.subjects, self.windows, intervention.Config())

    def outcomes(self, steered: Reply) -> list[Outcome]:
        asking = self.asking()
        next(asking)
        requests = [request for request in asking.send([steered]) if isinstance(request, Likelihood)]
        new = [request for request in requests if request not in self.read]
        self.read.update(zip(new, self.reader.likelihoods(new), strict=True))
        with pytest.raises(StopIteration) as stop:
            asking.send([self.read[request] for request in requests])
        found: list[Outcome] = stop.value.value
        return found


def gain(outcome: Outcome) -> Metric:
    (metric,) = [metric for metric in outcome.metrics if metric.metric == "logprob_gain"]
    return metric


def test_a_planted_direction_is_scored_above_its_shuffled_control(real: SubjectModel) -> None:
    run = Run(real, 0)
    assert isinstance(run.steered, SteerReply) and run.steered.converged
    outcomes = run.outcomes(run.steered)
    true, shuffled = map(gain, outcomes)
    assert (true.n, true.status, shuffled.n) == (N, "ok", N)
    assert true.ci_low is not None and shuffled.ci_high is not None
    assert true.ci_low > 0 and true.ci_low > shuffled.ci_high
    values = [np.array([judged.probability for judged in outcome.judgements], float) for outcome in outcomes]
    paired = mean_metric("difference", (values[0] - values[1]).tolist(), 0)
    assert paired.ci_low is not None and paired.ci_low > 0

    # The same texts the other way round: steered ones in the place of the clean.
    swapped = run.outcomes(replace(run.steered, clean=run.steered.steered, steered=run.steered.clean))
    for one, other in zip(map(gain, outcomes), map(gain, swapped), strict=True):
        assert one.value is not None and other.value == pytest.approx(-one.value) and abs(one.value) > 0.1
