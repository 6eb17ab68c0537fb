"""Flags that several verbs share. A flag's help is the docstring of the setting it sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Sae = Annotated[
    str | None,
    typer.Option(help="SAE: a folder in any format that is read, a hub id, or neurons:32 (a baseline)."),
]
Null = Annotated[
    str | None,
    typer.Option(help="A control in its place: random_sae (untrained, same shape) or random_model (random weights)."),
]
Model = Annotated[
    str | None, typer.Option(help="Subject model: a folder or a hub id. Default: what the SAE's metadata says.")
]
Hookpoint = Annotated[
    str | None, typer.Option(help="Where the SAE reads: layers.9, layers.9.mlp, layers.9.self_attn.o_proj:in.")
]
Dataset = Annotated[
    str | None, typer.Option(help="Text: .txt, .jsonl, .parquet, a saved data set, a hub id, or `docstrings`.")
]
TextColumn = Annotated[str | None, typer.Option(help="Column that holds the text.")]
Tokens = Annotated[int | None, typer.Option(help="Tokens to collect activations over.")]
ContextLength = Annotated[int | None, typer.Option(help="Tokens per context.")]
Out = Annotated[str | None, typer.Option(help="Run folder. Default: results/<name of the SAE>.")]
RunFolder = Annotated[str | None, typer.Option("--run", help="Folder of an earlier run, for its explanations.")]
Latents = Annotated[str | None, typer.Option(help="Latents: 0:500 (a range), 17,23 (a list), random:200.")]
Limit = Annotated[int | None, typer.Option(help="A seeded random sample of this many live latents.")]
Seed = Annotated[int | None, typer.Option(help="Every random draw of the run derives from it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")]
Explainer = Annotated[str | None, typer.Option(help="How to explain; see `autointerp list explainers`.")]
Client = Annotated[str | None, typer.Option(help="Who answers chat requests; see `autointerp list clients`.")]
Llm = Annotated[str | None, typer.Option(help="Model that explains.")]
ScorerLlm = Annotated[str | None, typer.Option(help="Model that judges: a chat model's name, or a local folder.")]
BaseUrl = Annotated[
    str | None,
    typer.Option(help="OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1; several are joined by commas."),
]
Embedder = Annotated[
    str | None, typer.Option(help="Sentence encoder: a folder, a hub id, or openai:MODEL behind an API.")
]
CiHalfwidth = Annotated[
    float | None,
    typer.Option(
        "--ci-halfwidth",
        help="Judge in rounds, and stop a latent when its 95% interval is this narrow, e.g. 0.1 (detection, fuzzing).",
    ),
]
MaxConcurrency = Annotated[int | None, typer.Option(help="Most requests in flight at a server.")]
MaxFailed = Annotated[
    float | None, typer.Option(help="End with code 4 when a larger share of the answers failed (0 to 1).")
]
Budget = Annotated[
    str | None, typer.Option(help="Most that the run may spend on servers, over all its commands: 5usd, 2Mtok.")
]
Batch = Annotated[
    bool | None, typer.Option("--batch", help="Ask through OpenAI's batch API: half the price, within a day.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Render everything, ask nothing: prints what it would cost; see `cost`.")
]
Config = Annotated[Path | None, typer.Option(help="YAML file with settings; flags go before it.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="One setting, as name=value, e.g. sampling.window=64.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Redo everything in the run folder.")]
RetryFailed = Annotated[bool, typer.Option("--retry-failed", help="Ask again where an answer failed.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
Plain = Annotated[bool, typer.Option("--plain", help="Log lines instead of bars; automatic outside a terminal.")]
