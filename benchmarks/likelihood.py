"""Likelihoods and chats of the in-process client: CPU-seconds against ways that share nothing, and their agreement.

Windows of about 32 tokens of docstrings are scored after one prompt of 200 tokens and more, as a scorer does with an
explanation: by `HFClient`, which runs the prompt once, and by running every prompt and text whole, in batches under
the same budget of padded tokens and with logits for the texts alone. Chats are continued in one batch and one by one.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _bench import Figures, parser

from autointerp.clients._batches import by_length
from autointerp.clients._teacher_forced import BATCH_TOKENS
from autointerp.clients.hf import HFClient
from autointerp.collect.docstrings import docstrings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.subject.generate import Continuation, Prompt, generate, stop_ids
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.subject.prefill import log_prob, pad
from prompts.requests import Likelihood, LikelihoodReply

SIZES = {"full": (100, 16, 32), "small": (12, 4, 6)}
"""Windows, chats, and new tokens of each chat."""
WINDOW, PREFIX = 32, 200


def likelihood_requests(subject: SubjectModel, n: int, documents: Sequence[str]) -> list[Likelihood]:
    """`n` windows, each from a document of its own, under one prompt of at least `PREFIX` tokens."""
    tokenizer = subject.tokenizer
    head, rest = documents[0], list(documents[1:])
    while len(tokenizer(head)["input_ids"]) < PREFIX:
        head += "\n\n" + rest.pop(0)
    head = tokenizer.decode(tokenizer(head)["input_ids"][:PREFIX])
    prompt = f"An explanation, and examples that it is made from:\n\n{head}\n\nHere is another text that it fits:\n\n"
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in rest]
    windows = [tokenizer.decode(row[4 : 4 + WINDOW]) for row in ids if len(row) >= 4 + WINDOW]
    return [Likelihood(prompt, window) for window in windows[:n]]


@torch.inference_mode()
def unshared(subject: SubjectModel, requests: Sequence[Likelihood]) -> list[list[float]]:
    """Log-probabilities of each text's tokens; prompts and texts are run whole."""
    heads = [subject.tokenizer(request.prompt)["input_ids"] for request in requests]
    tails = [subject.tokenizer(request.text, add_special_tokens=False)["input_ids"] for request in requests]
    whole = [[*head, *tail] for head, tail in zip(heads, tails, strict=True)]
    found: list[list[float]] = [[] for _ in requests]
    for batch in by_length([len(row) for row in whole], BATCH_TOKENS):
        # Padded on the left, so that all texts end at the end and no logits are computed for the prompts.
        tokens, mask = pad([whole[i] for i in batch], left=True, device=subject.device)
        width = max(len(tails[i]) for i in batch)
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = subject.model(
            input_ids=tokens, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=width + 1
        ).logits[:, :-1]
        logprobs = log_prob(logits, tokens[:, -width:])
        for i, row in zip(batch, logprobs.tolist(), strict=True):
            found[i] = row[width - len(tails[i]) :]
    return found


def chat_prompts(subject: SubjectModel, n: int, documents: Sequence[str], max_tokens: int) -> list[Prompt]:
    """Conversations about documents of different lengths."""
    made = []
    for i, text in enumerate(documents[:n]):
        asked = [{"role": "user", "content": f"What does this do?\n\n{text[: 40 + 30 * i]}"}]
        head = subject.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        ids = subject.tokenizer(head, add_special_tokens=False)["input_ids"]
        made.append(Prompt(tuple(ids), max_tokens))
    return made


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU-seconds of all threads, and the result."""
    began = time.process_time()
    result = run()
    return time.process_time() - began, result


def add_likelihoods(figures: Figures, subject: SubjectModel, requests: Sequence[Likelihood], rounds: int) -> None:
    client = HFClient(subject)
    client.likelihoods(requests[:2])
    unshared(subject, requests[:2])
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        ours, replies = timed(lambda: client.likelihoods(requests))
        theirs, plain = timed(lambda: unshared(subject, requests))
        seconds.append((ours, theirs))
    shared = [list(reply.token_logprobs) for reply in replies if isinstance(reply, LikelihoodReply)]
    differences = [
        abs(a - b) for mine, other in zip(shared, plain, strict=True) for a, b in zip(mine, other, strict=True)
    ]
    figures.setting |= {"windows": len(requests), "window tokens": len(differences) / len(requests)}
    figures.setting["prompt tokens"] = len(subject.tokenizer(requests[0].prompt)["input_ids"])
    figures.add("CPU-s, shared prompt", statistics.median(ours for ours, _ in seconds))
    figures.add("CPU-s, unshared", statistics.median(theirs for _, theirs in seconds))
    figures.add("shared / unshared, CPU-seconds", statistics.median(a / b for a, b in seconds), 0.5)
    figures.add("largest difference of a token's log-probability", max(differences), 1e-4)


def add_chats(figures: Figures, subject: SubjectModel, prompts: Sequence[Prompt]) -> None:
    stop = stop_ids(subject)
    together, batched = timed(lambda: generate(subject, prompts, stop))
    apart, single = timed(lambda: [generate(subject, [prompt], stop)[0] for prompt in prompts])

    def text(found: Continuation) -> tuple[str, bool]:
        return subject.tokenizer.decode(list(found.tokens)), found.ended

    unequal = sum(text(a) != text(b) for a, b in zip(batched, single, strict=True))
    lengths = [len(prompt.tokens) for prompt in prompts]
    figures.setting |= {"chats": len(prompts), "chat prompts' tokens": [min(lengths), max(lengths)]}
    figures.setting["new tokens"] = sum(len(found.tokens) for found in batched)
    figures.add("batched chats / single ones, CPU-seconds", together / apart)
    figures.add("unequal texts, batched and single", unequal, 0)


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--size", choices=SIZES, default="full", help="small: seconds instead of minutes")
    made.set_defaults(rounds=2)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    n_windows, n_chats, new_tokens = SIZES[arguments.size]
    subject = load_subject(str(demo_subject()))
    documents = list(itertools.islice(docstrings(0), 4 * n_windows))
    figures = Figures("likelihoods and chats in this process")
    requests = likelihood_requests(subject, n_windows, documents)
    assert len(requests) == n_windows
    add_likelihoods(figures, subject, requests, 1 if arguments.size == "small" else arguments.rounds)
    add_chats(figures, subject, chat_prompts(subject, n_chats, documents, new_tokens))
    figures.finish(arguments)


if __name__ == "__main__":
    main()
