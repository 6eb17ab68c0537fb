"""What a job would take, before anything is spent: every prompt of a sample of latents is rendered and counted.

Without a store of the run's own, a pilot collects a little text into a folder that is thrown away; what it takes is
measured, and scaled to the whole.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autointerp.config import AskingSettings, ScoreSettings
from autointerp.engine.pretend import PHRASE, asked_by, pretended
from autointerp.engine.prices import Rates, rates
from autointerp.pipeline.latents import choose, states
from autointerp.pipeline.run import Run
from autointerp.pipeline.score import config_of
from autointerp.pipeline.session import Session
from autointerp.progress import Reporter
from autointerp.registries import EXPLAINERS, SCORERS, configured, member
from autointerp.store import layout
from prompts.requests import Chat, ChatReply, Choice, Effects, Embed, Likelihood, Request, Usage
from scoring.types import Subject

PILOT_TOKENS = 30_000
SAMPLE = 6
"""Latents whose prompts are rendered: those with most windows, whose prompts are full."""
PER_MESSAGE, PER_CHAT = 4, 3
"""Tokens that chat templates mostly add."""


HERE = "this process"

Asks = list[tuple[float, list[Request]]]
"""What units ask, each with the number of latents that it stands for."""


@dataclass(frozen=True)
class StageCost:
    """Of one stage for the whole job. Ranges are (low, likely, high): answers as short as can be, as they mostly are,
    and as long as they may be."""

    stage: str
    asks: str
    """The model and where it is, or `this process`."""
    units: int
    calls: int
    prompt_tokens: int
    completion_tokens: tuple[int, int, int] = (0, 0, 0)
    price: tuple[float, float, float] | None = None
    """USD; None where the price is unknown."""
    seconds: float | None = None
    """Of this machine, measured in a pilot; None where it was not."""
    disk: int = 0
    """Bytes."""

    @property
    def free(self) -> bool:
        """Nothing is sent to a server."""
        return self.asks.endswith(HERE)


@dataclass
class Estimate:
    stages: list[StageCost] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def estimate(session: Session, stages: Iterable[str]) -> Estimate:
    """Of the stages `collect`, `explain` and `score` of this session's settings; `collect` only where it is missing."""
    found, wanted = Estimate(), set(stages)
    with tempfile.TemporaryDirectory(prefix="autointerp-cost-") as folder:
        seen = session
        if not layout.finished(session.store_folder):
            seen, collecting = _pilot(session, Path(folder))
            found.stages.append(collecting)
            found.notes.append(
                f"counted on a pilot of {seen.store.n_tokens:,} tokens; with {session.settings.data.tokens:,} more "
                "latents will be live, and their windows will vary more"
            )
        state, counts = states(seen)
        live = np.flatnonzero((state == "live") | (state == "dense"))
        if seen is session or not len(live):
            n_latents = len(choose(session, state))
        else:
            fired = int((state != "dead").sum())
            n_latents = min(session.settings.limit or fired, fired)
            if session.settings.limit is None and session.settings.latents is None:
                found.notes.append(f"{fired:,} latents fired in the pilot: as many are counted as being explained")
        richest = [int(i) for i in np.argsort(-counts, kind="stable")[:SAMPLE] if counts[i] > 0]
        seen.sampler.prepare(richest)
        if "explain" in wanted:
            found.stages.append(_explaining(seen, session, richest, n_latents))
        if "score" in wanted:
            if session.settings.score.ci_halfwidth is not None:
                found.notes.append("latents that stop early (ci_halfwidth) are counted as if they did not")
            found.stages += _scoring(seen, session, richest, n_latents)
        found.notes.append(
            f"tokens are counted with the tokenizer of {seen.subject.label}; other tokenizers give up to a fifth more "
            "or less"
        )
    return found


def _pilot(session: Session, folder: Path) -> tuple[Session, StageCost]:
    settings = session.settings
    n = min(settings.data.tokens, PILOT_TOKENS)
    data = settings.data.model_copy(update={"tokens": n})
    # In a pilot few latents fire often; their few windows have to do.
    sampling = settings.sampling.model_copy(update={"min_windows": 1})
    small = settings.model_copy(update={"data": data, "sampling": sampling, "budget": None, "out": str(folder)})
    pilot = Session(Run(folder / "pilot", small), Reporter(quiet=True), session.sae_spec)
    pilot.__dict__.update({name: session.__dict__[name] for name in ("subject", "sae") if name in session.__dict__})
    began = time.perf_counter()
    store = pilot.store
    scale = settings.data.tokens / n
    seconds = (time.perf_counter() - began) * scale
    size = sum(path.stat().st_size for path in pilot.store_folder.rglob("*") if path.is_file())
    cost = StageCost("collect", HERE, store.n_latents, 0, settings.data.tokens, seconds=seconds, disk=int(size * scale))
    pilot.run.account.close()
    return pilot, cost


def _explaining(seen: Session, session: Session, latents: Sequence[int], n_latents: int) -> StageCost:
    settings = session.settings.explain
    explainer = member(EXPLAINERS, settings.explainer)
    config = configured(explainer, settings.options, "explain.options")
    share = n_latents / max(1, len(latents))
    asked = [(share, asked_by(explainer.explain(seen.sampler.record(latent), config))) for latent in latents]
    return _stage("explain", seen, session, settings, asked, n_latents)


def _scoring(seen: Session, session: Session, latents: Sequence[int], n_latents: int) -> list[StageCost]:
    settings, found = session.settings.score, []
    for name in dict.fromkeys(settings.methods):
        scorer = member(SCORERS, name)
        config = config_of(scorer, settings)
        if getattr(config, "ci_halfwidth", None) is not None:
            # Who will stop early, nobody knows before.
            config = replace(config, ci_halfwidth=None)
        controlled = min(n_latents, settings.control_latents)
        asked: Asks = []
        for n, n_controls in ((controlled, len(settings.controls)), (n_latents - controlled, 0)):
            for latent in latents if n else []:
                # An explanation and its controls are graded in one unit.
                subjects = [Subject(latent, PHRASE), *(Subject(latent, f"{PHRASE} {i}") for i in range(n_controls))]
                windows = getattr(seen.sampler.record(latent), scorer.WINDOWS)
                asked.append((n / len(latents), asked_by(scorer.score(subjects, windows, config))))
        found.append(_stage(f"score-{name}", seen, session, settings, asked, n_latents))
    return found


def _stage(
    name: str, seen: Session, session: Session, settings: AskingSettings, asked: Asks, n_latents: int
) -> StageCost:
    """Scale what a sample of latents asks to all of them."""
    encode = seen.subject.tokenizer
    paid = _who(session, settings)

    def count(text: str) -> int:
        return len(encode(text, add_special_tokens=False, verbose=False)["input_ids"])

    requests = [(weight, request) for weight, unit in asked for request in unit]
    remote = [(weight, request) for weight, request in requests if paid(request) is not None]
    where = next((paid(request) for _, request in remote), None)
    usages = [(weight, *counted(request, count)) for weight, request in (remote or requests)]
    prompt = round(sum(weight * prompt for weight, prompt, _ in usages))
    completion = tuple(round(sum(weight * said[i] for weight, _, said in usages)) for i in range(3))
    price: tuple[float, float, float] | None = None
    if where is None:
        price = (0.0, 0.0, 0.0)
    elif found := rates(where[0], where[1], session.settings.prices):
        price = _prices(found, prompt, completion, 0.5 if session.settings.batch else 1.0)
    chats = any(isinstance(request, Chat | Choice) for _, request in requests)
    asks = f"{settings.llm or settings.client} in {HERE}" if chats else HERE
    if where is not None:
        asks = f"{where[0]} at {where[1]}"
    low, likely, high = completion
    return StageCost(
        name, asks, n_latents, round(sum(weight for weight, *_ in usages)), prompt, (low, likely, high), price
    )


def _prices(found: Rates, prompt: int, completion: Sequence[int], discount: float) -> tuple[float, float, float]:
    low, likely, high = (discount * found.price(Usage(prompt, said)) for said in completion)
    return low, likely, high


def counted(request: Request, count: Callable[[str], int]) -> tuple[int, tuple[int, int, int]]:
    """Tokens of the prompt, and of the answer: as short as it can be, as it mostly is, as long as it may be."""
    if isinstance(request, Chat | Choice):
        prompt = PER_CHAT + sum(PER_MESSAGE + count(message.content) for message in request.messages)
        if isinstance(request, Choice):
            return prompt, (1, 1, 1)
        reply = pretended(request)
        likely = min(request.max_tokens, 1 + count(reply.text)) if isinstance(reply, ChatReply) else 0
        return prompt, (min(likely, 2), likely, request.max_tokens)
    if isinstance(request, Likelihood):
        return count(request.prompt) + count(request.text), (0, 0, 0)
    if isinstance(request, Embed):
        return count(request.text), (0, 0, 0)
    if isinstance(request, Effects):
        return sum(map(len, request.prompts)), (0, 0, 0)
    n = len(request.prompts)
    return sum(map(len, request.prompts)), (0, 2 * n * request.max_new_tokens, 2 * n * request.max_new_tokens)


def _who(session: Session, settings: AskingSettings) -> Callable[[Request], tuple[str, str] | None]:
    """The model and the address that a request would go to; None for a model in this process."""
    from autointerp.clients._announced import SCHEME
    from autointerp.clients._keys import shown
    from autointerp.clients.openai import DEFAULT_BASE_URL

    given = settings.base_url or DEFAULT_BASE_URL
    url = given if given.startswith(SCHEME) else shown(given.split(",")[0])
    embedder = session.settings.score.embedder or ""
    by_client = isinstance(settings, ScoreSettings) and settings.likelihoods == "client"

    def of(request: Request) -> tuple[str, str] | None:
        if isinstance(request, Embed):
            return (embedder.removeprefix("openai:"), url) if embedder.startswith("openai:") else None
        chats = isinstance(request, Chat | Choice) or (isinstance(request, Likelihood) and by_client)
        return (settings.llm or "(no --llm)", url) if chats and settings.client == "openai" else None

    return of
