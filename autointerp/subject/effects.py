"""What a latent does to the output: the logit lens of its direction, and the next tokens that steering makes likelier.

The steering is that of the intervention scorer (`steer.py`), at the strength that reaches a target KL.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from autointerp.subject.lens import largest, logit_lens
from autointerp.subject.load import SubjectModel
from autointerp.subject.steer import Batch, Found, Rows, SteerClient
from prompts.requests import Effects, EffectsReply, Failure, Reply, Request, Steer, Usage
from sae.base import SparseAutoencoder


class EffectsClient:
    """Answers `Effects` for one subject model and one SAE: where the SAE reads, or where a transcoder writes.

    Every request has its passes to itself, so that no reply depends on what else is asked.
    """

    name = "effects"
    supports: frozenset[type] = frozenset({Effects})
    concurrency = 1

    def __init__(self, subject: SubjectModel, sae: SparseAutoencoder, hookpoint: str) -> None:
        self.steering = SteerClient(subject, sae, hookpoint)
        self.model = subject.label
        self.identity = f"effects {subject.fingerprint} {subject.model.dtype}"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        return [self.effects(request) for request in requests if isinstance(request, Effects)]

    async def close(self) -> None:
        return None

    @torch.inference_mode()
    def effects(self, request: Effects) -> Reply:
        if any(len(prompt) < 2 for prompt in request.prompts):
            return Failure("empty", "a prompt to steer needs at least two tokens")
        lens = self._lens(request)
        promoted, suppressed = (
            None if lens is None else largest(self.steering.subject, sign * lens, request.lens_tokens, sign)
            for sign in (1, -1)
        )
        if not request.prompts:
            return EffectsReply(promoted, suppressed, (), (), None, None, False)
        found, changes = self._steered(request)
        decode = self.steering.subject.tokenizer.decode
        texts = tuple(decode(list(prompt), clean_up_tokenization_spaces=False) for prompt in request.prompts)
        gains = tuple(largest(self.steering.subject, change, request.n_tokens) for change in changes)
        usage = Usage(prompt_tokens=sum(map(len, request.prompts)))
        return EffectsReply(promoted, suppressed, texts, gains, found.strength, found.kl, found.converged, usage)

    def _lens(self, request: Effects) -> Tensor | None:
        """Change of each token's logit, `[V]`."""
        client = self.steering
        direction = client.sae.directions(torch.tensor([request.latent], device=client.subject.device)).float()
        changes = logit_lens(client.subject, client.hookpoint, request.pole * direction)
        return None if changes is None else changes[0]

    def _steered(self, request: Effects) -> tuple[Found, Tensor]:
        """The strength, and the change of each token's probability after each prompt, `[prompts, V]`."""
        steer = Steer(
            request.latent, request.prompts, request.target_kl, 0, 0, tolerance=request.tolerance, pole=request.pole
        )
        batch = Batch(self.steering, [steer])
        (found,), (places,) = batch.find_strengths(), batch.places
        rows = Rows(places, [request.latent] * len(places), [found.strength] * len(places))
        # As the clean ones are computed, so that no edit is no change, to the last bit.
        steered = batch.next_logits(rows).log_softmax(dim=-1)
        return found, steered.exp() - batch.clean_logprobs[places].exp()
