"""vLLM in this process: chat, exact probabilities of given answers, and teacher-forced likelihoods.

This is the only module that imports vllm, and it does so when a client is made. A running vLLM server is asked
through the `openai` client instead.

Everything becomes a list of token prompts that the engine is given at once, sorted so that prompts with a common
beginning are neighbours: the later ones find the earlier one's keys and values in the prefix cache.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from autointerp.clients._conversations import written_out
from autointerp.errors import UserError
from autointerp.types import Client
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    ChoiceReply,
    Failure,
    Likelihood,
    LikelihoodReply,
    Message,
    Reply,
    Request,
    Usage,
    fingerprint,
)

MISSING = 'the vllm client needs vLLM: pip install "autointerp-toolkit[vllm]"'
ENVIRONMENT = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
"""Set unless the user has: vLLM logs a page per start, and reports its use to its makers."""
CPU_CACHE_GB = "4"
"""Keys and values on the CPU, where vLLM would otherwise reserve 92 % of the machine's memory."""
REFUSALS = frozenset({"TypeError", "ValueError", "VLLMClientError"})
"""By name, since releases differ: what tokenizers, chat templates and vLLM raise for a request that is no good."""


@dataclass(slots=True)
class Job:
    """One prompt for the engine. The log-probabilities of its last `scored` tokens are wanted; 0 to generate."""

    ids: list[int]
    params: Any
    scored: int = 0


class VLLMClient(Client):
    """`Client` of a model in a vLLM engine. `engine_options` go to `vllm.LLM` as they are.

    `concurrency` is the number of units of work whose chats are generated together. A prompt that leaves no room for
    `max_tokens` is a `context_overflow`, as it is to vLLM's server. Sampled chats (temperature above 0) are drawn
    with the seed `sample_index`. Conversations go through the tokenizer's chat template; without one, the messages'
    contents are joined by blank lines.

    vLLM starts the engine in a process of its own, which imports the caller's main module again: a script needs
    `if __name__ == "__main__":` around its work.

    Raises:
        UserError: vLLM is not installed, or it cannot load the model.
    """

    name = "vllm"
    supports = frozenset({Chat, Choice, Likelihood})

    def __init__(self, model: str, *, concurrency: int = 64, **engine_options: Any) -> None:
        self.model = Path(model).name if Path(model).is_dir() else model
        self.concurrency = concurrency
        self.identity = _identity(model, engine_options)
        vllm = _import_vllm(engine_options)
        self._sampling = import_module("vllm.sampling_params")
        options = {"model": model, **_defaults(vllm), **engine_options}
        self._start = partial(vllm.LLM, **options)
        try:
            self._llm = self._start()
        except Exception as error:  # whatever a release raises for a model or an option that is no good
            remedy = "VLLM_LOGGING_LEVEL=INFO shows what it was doing"
            raise UserError(f"vLLM cannot load '{model}': {_one_line(error)} ({remedy})") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._limit = int(self._llm.llm_engine.model_config.max_model_len)
        # Older releases decide by themselves not to read the prefix cache where logprobs of the prompt are wanted.
        self._may_read_cache = "skip_reading_prefix_cache" in self._sampling.SamplingParams.__struct_fields__

    def __repr__(self) -> str:
        return f"VLLMClient(model={self.model!r})"

    async def answer(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply or `Failure` per request, in their order. Never raises."""
        plans = [self._plan(request) for request in requests]
        jobs = [job for plan in plans if not isinstance(plan, Failure) for job in plan]
        outputs = iter(self._run_all(jobs))
        return [
            plan if isinstance(plan, Failure) else self._read(request, plan, [next(outputs) for _ in plan])
            for request, plan in zip(requests, plans, strict=True)
        ]

    async def close(self) -> None:
        """End the engine's process and free its memory. A later `answer` starts another."""
        llm, self._llm = self._llm, None
        core = getattr(getattr(llm, "llm_engine", None), "engine_core", None)
        if core is not None:
            core.shutdown()
        del llm, core
        gc.collect()

    def _plan(self, request: Request) -> list[Job] | Failure:
        """What the engine has to run for a request."""
        try:
            if isinstance(request, Chat):
                return self._plan_chat(request)
            if isinstance(request, Choice):
                asked = self._conversation(request.messages)
                return self._plan_scores(asked, [self._encode(choice, special=False) for choice in request.choices])
            if isinstance(request, Likelihood):
                text = self._encode(request.text, special=False)
                return self._plan_scores(self._encode(request.prompt, special=True), [text])
        except Exception as error:  # chat templates raise what they like, and the other requests are to be answered
            return _failed(error)
        return Failure("error", f"the vllm client cannot answer {type(request).__name__} requests")

    def _plan_chat(self, request: Chat) -> list[Job] | Failure:
        ids = self._conversation(request.messages)
        if len(ids) + request.max_tokens > self._limit:
            return self._overflow(f"{len(ids)} tokens of prompt and {request.max_tokens} of answer")
        options: dict[str, Any] = {"temperature": request.temperature, "max_tokens": request.max_tokens}
        if request.temperature > 0:
            options["seed"] = request.sample_index
        if request.schema is not None:
            schema = dict(request.schema)
            if hasattr(self._sampling, "StructuredOutputsParams"):
                options["structured_outputs"] = self._sampling.StructuredOutputsParams(json=schema)
            else:
                options["guided_decoding"] = self._sampling.GuidedDecodingParams(json=schema)
        return [Job(ids, self._sampling.SamplingParams(**options))]

    def _plan_scores(self, prompt: list[int], texts: list[list[int]]) -> list[Job] | Failure:
        if not texts:
            return Failure("empty", "there are no answers to choose from")
        if not prompt or not all(texts):
            return Failure("empty", "the prompt or the text after it has no tokens")
        longest = len(prompt) + max(map(len, texts))
        # The engine cannot be kept from generating one token.
        if longest + 1 > self._limit:
            return self._overflow(f"{longest} tokens (and one that vLLM generates)")
        return [Job(prompt + text, self._scoring(read_cache=self._may_read_cache), len(text)) for text in texts]

    def _scoring(self, read_cache: bool) -> Any:
        options = {"skip_reading_prefix_cache": False} if read_cache else {}
        return self._sampling.SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False, **options
        )

    def _encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        return ids

    def _conversation(self, messages: Sequence[Message]) -> list[int]:
        text, special = written_out(self._tokenizer, messages)
        return self._encode(text, special=special)

    def _overflow(self, what: str) -> Failure:
        return Failure("context_overflow", f"{what} do not fit the model's context of {self._limit}")

    def _run_all(self, jobs: Sequence[Job]) -> list[Any]:
        """Outputs of the engine in the order of the jobs; a `Failure` where there is none."""
        outputs = self._run_sorted(jobs)
        # A position that came from the cache was not computed, and has no log-probability or a meaningless one.
        stale = [i for i, job in enumerate(jobs) if _reached_into_text(job, outputs[i])]
        again = [Job(jobs[i].ids, self._scoring(read_cache=False), jobs[i].scored) for i in stale]
        for i, output in zip(stale, self._run_sorted(again), strict=True):
            outputs[i] = output
        return outputs

    def _run_sorted(self, jobs: Sequence[Job]) -> list[Any]:
        order = sorted(range(len(jobs)), key=lambda i: jobs[i].ids)
        found = dict(zip(order, self._run([jobs[i] for i in order]), strict=True))
        return [found[i] for i in range(len(jobs))]

    def _run(self, jobs: list[Job]) -> list[Any]:
        if not jobs:
            return []
        prompts = [{"prompt_token_ids": job.ids} for job in jobs]
        try:
            self._llm = self._llm or self._start()
            outputs: list[Any] = self._llm.generate(prompts, [job.params for job in jobs], use_tqdm=False)
            if len(outputs) == len(jobs):
                return outputs
            failure = Failure("error", f"vLLM gave {len(outputs)} outputs for {len(jobs)} prompts")
        except Exception as error:  # it refuses all prompts for one that it does not like
            failure = _failed(error)
        if len(jobs) == 1:
            return [failure]
        return self._run(jobs[: len(jobs) // 2]) + self._run(jobs[len(jobs) // 2 :])

    def _read(self, request: Request, jobs: list[Job], outputs: list[Any]) -> Reply:
        failure = next((output for output in outputs if isinstance(output, Failure)), None)
        if failure is not None:
            return failure
        try:
            if isinstance(request, Chat):
                return _read_chat(outputs[0])
            logprobs = [_text_logprobs(job, output) for job, output in zip(jobs, outputs, strict=True)]
            # The prompt counts once, as it does for every client; with answers of a Choice it is the same each time.
            usage = Usage(
                prompt_tokens=len(jobs[0].ids) + sum(job.scored for job in jobs[1:]),
                cached_tokens=min(output.num_cached_tokens or 0 for output in outputs),
            )
            if isinstance(request, Likelihood):
                return LikelihoodReply(logprobs[0], usage)
            return ChoiceReply(tuple(math.exp(sum(tokens)) for tokens in logprobs), usage)
        except Exception as error:  # an output of a shape that this release of vLLM alone knows
            return _failed(error)


def create(
    model: str, *, device: str | None = None, dtype: str = "auto", max_concurrency: int = 64, **options: Any
) -> VLLMClient:
    """The registry's door. `options` go to `vllm.LLM`.

    `device` is taken as every in-process client takes it, and has no effect: a vLLM build has one kind of device,
    and CUDA_VISIBLE_DEVICES says which of them.

    Raises:
        UserError: see `VLLMClient`.
    """
    return VLLMClient(model, concurrency=max_concurrency, dtype=dtype, **options)


def _import_vllm(engine_options: dict[str, Any]) -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # The variable wins over the options, so it must not be set against one of them.
    if not {"kv_cache_memory_bytes", "gpu_memory_utilization"} & engine_options.keys():
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CPU_CACHE_GB)
    spec = find_spec("vllm")
    # A mere folder of that name on the path, such as a checkout of vLLM, has a spec too, but no file.
    if spec is None or spec.origin is None:
        raise UserError(MISSING)
    try:
        return import_module("vllm")
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"vLLM is installed, but cannot be imported: {_one_line(error)}") from error


def _defaults(vllm: Any) -> dict[str, Any]:
    """Engine options that this release has."""
    known = getattr(vllm.EngineArgs, "__dataclass_fields__", {})
    options: dict[str, Any] = {"enable_prefix_caching": True, "use_tqdm_on_load": False}
    # Small models would fill an answer in JSON with white space.
    if "structured_outputs_config" in known:
        options["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    else:
        options |= {"guided_decoding_backend": "xgrammar", "guided_decoding_disable_any_whitespace": True}
    return {name: value for name, value in options.items() if name in known}


def _failed(error: Exception) -> Failure:
    """What an exception stands for: a request that cannot be run, or something that went wrong."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return Failure("rejected" if kinds & REFUSALS else "error", f"{type(error).__name__}: {_one_line(error)}")


def _identity(model: str, options: Mapping[str, Any]) -> str:
    """Of the weights, for the reply cache: a folder is known by its files, since its name says little."""
    files = sorted(Path(model).glob("*")) if Path(model).is_dir() else []
    seen = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()]
    return f"vllm {fingerprint([model, seen, dict(options)])}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]


def _reached_into_text(job: Job, output: Any) -> bool:
    """Whether the first scored token's log-probability, computed at the position before it, came from the cache."""
    read_cache = getattr(job.params, "skip_reading_prefix_cache", None) is False
    if not job.scored or not read_cache or isinstance(output, Failure):
        return False
    return output.num_cached_tokens is None or output.num_cached_tokens >= len(job.ids) - job.scored


def _text_logprobs(job: Job, output: Any) -> tuple[float, ...]:
    # Counted from the end, because some releases leave out the positions that came from the cache.
    places = output.prompt_logprobs[-job.scored :]
    return tuple(float(place[token].logprob) for place, token in zip(places, job.ids[-job.scored :], strict=True))


def _read_chat(output: Any) -> Reply:
    said = output.outputs[0]
    usage = Usage(len(output.prompt_token_ids), len(said.token_ids), output.num_cached_tokens or 0)
    if said.finish_reason == "length":
        return Failure("truncated", "stopped at max_tokens before the answer was complete", usage)
    if said.finish_reason != "stop":
        return Failure("error", f"vLLM ended the answer with {said.finish_reason}", usage)
    if not said.text.strip():
        return Failure("empty", "no text in the answer", usage)
    return ChatReply(said.text, usage)
