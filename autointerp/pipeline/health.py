"""The checks of `autointerp doctor` that need a model: is this SAE what its metadata says, is this store whole?

Every check yields lines and raises nothing: what goes wrong is what the user came to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from autointerp.collect.tokens import TokenBlocks
    from autointerp.subject.load import SubjectModel
    from sae.base import SAEMetadata, SparseAutoencoder

CONTEXTS, CONTEXT_LENGTH = 4, 256
"""Text that the figures are taken on: about a thousand tokens, seconds on a CPU."""
FVU_SHARE, FVU_LEAST, L0_SHARE = 0.25, 0.05, 0.15
"""How far FVU and L0 may lie from the recorded ones. A thousand tokens tell them no more exactly than that."""
POOR_FVU = 0.5
SKIPPABLE = 20_000
"""Documents of the training text that are left out, at most: streaming past more would take minutes."""

CAUSES = (
    "likely causes: not the model or the hookpoint that the SAE was trained on, activations normalised in another way, "
    "or very different text; check --model, --hookpoint and --dataset"
)


@dataclass(frozen=True, slots=True)
class Line:
    """One finding. A warning or a failure says what to do about it."""

    level: Literal["ok", "warn", "FAIL"]
    text: str
    remedy: str = ""


def said(error: BaseException) -> str:
    """An error in one line; errors that were not written for users also give their type."""
    from autointerp.errors import AutointerpError
    from sae.errors import SAEError

    lines = str(error).strip().splitlines()
    first = lines[0] if lines else "no message"
    return first if isinstance(error, AutointerpError | SAEError) else f"{type(error).__name__}: {first}"


def check_store(folder: Path) -> Iterator[Line]:
    """Open a store and compare every file with its sha256; of an unfinished one, say how far it is."""
    from autointerp.store import layout
    from autointerp.store.reader import LatentStore

    try:
        if layout.begun(folder) and not layout.finished(folder):
            yield from _unfinished_store(folder)
            return
        store = LatentStore.open(folder, verify=True)
        identity = store.identity
        text = f"'{folder}': {store.n_latents:,} latents over {store.n_tokens:,} tokens, every file as it was written"
    except Exception as error:  # a damaged file may fail anywhere
        yield Line("FAIL", said(error), "collect it again, or copy it again from where it is whole")
        return
    yield Line("ok", text)
    known = ("model", "hookpoint", "dataset", "sae_sha")
    yield Line("ok", "collected from: " + _pairs({name: identity.get(name) for name in known}))
    for parts in (shard.folder / layout.PARTS for shard in store.shards):
        if parts.is_dir():
            yield Line("warn", f"'{parts}' was left over by a kill", "delete it: the store is finished without it")


def _unfinished_store(store: Path) -> Iterator[Line]:
    from autointerp.errors import Damaged
    from autointerp.store import layout
    from autointerp.store.reader import StoreShard
    from autointerp.store.unfinished import progress

    again = "run the command that collected it again: it goes on from there"
    folders = layout.all_shard_folders(store)
    for i, folder in enumerate(folders):
        if not folder.is_dir():
            yield Line(
                "warn", f"'{store}': shard {i}/{len(folders)} is missing",
                f"run `autointerp collect --shard {i}/{len(folders)}` with the settings of the others",
            )  # fmt: skip
            continue
        try:
            if (folder / layout.MANIFEST).is_file():
                StoreShard.open(folder, 0, verify=True)
                yield Line("ok", f"'{folder}': finished, every file as it was written")
                continue
            found = progress(folder)
        except Damaged as error:
            yield Line("FAIL", said(error), "collect it again, or copy it again from where it is whole")
            continue
        for text in found.damaged:
            yield Line("FAIL", text, f"{again}, sets the part aside and collects its contexts anew")
        of = "no contexts yet" if found.contexts is None else f"{found.collected:,} of {found.contexts:,} contexts"
        yield Line("warn", f"'{folder}': unfinished, {of} collected", again)


def check_sae(
    path: str, *, model: str | None = None, hookpoint: str | None = None, dataset: str | None = None,
    text_column: str | None = None, device: str = "cpu", dtype: str = "float32",
) -> Iterator[Line]:  # fmt: skip
    """Load an SAE, describe it, and measure it on activations of its subject model.

    What is not given is taken from the SAE's metadata; text defaults to the built-in docstrings.
    """
    import sae as sae_package

    try:
        sae = sae_package.load(path)
    except Exception as error:  # foreign files fail in many ways, each of them a finding
        yield Line("FAIL", said(error), "name an SAE's folder with --sae; `autointerp list formats` says what is read")
        return
    yield from _describe(sae, path)

    model, hookpoint = model or sae.metadata.model, hookpoint or sae.metadata.hookpoint
    for name, value, example in (
        ("subject model", model, "--model: a folder or a hub id"),
        ("hookpoint", hookpoint, "--hookpoint, e.g. layers.9"),
    ):
        if value is None:
            yield Line("FAIL", f"the SAE's metadata names no {name}, so it cannot be measured", f"give {example}")
    if model is None or hookpoint is None:
        return

    from autointerp.subject.hookpoints import find
    from autointerp.subject.load import load_subject

    try:
        subject = load_subject(model, device=device, dtype=dtype)
    except Exception as error:  # transformers raises whatever its parts raise
        yield Line(
            "FAIL", said(error), "name the subject model with --model: a folder, or a hub id that can be reached"
        )
        return
    yield Line("ok", f"subject model {model}: {_tokenizer(subject)}")
    try:
        find(subject.model, hookpoint)
        yield Line("ok", f"hookpoint {hookpoint}")
    except Exception as error:
        yield Line("FAIL", said(error), "name the hookpoint with --hookpoint")
        return

    name = dataset or sae.metadata.dataset or "docstrings"
    try:
        blocks = _text(subject, sae.metadata, name, text_column)
    except Exception as error:
        yield Line("FAIL", said(error), "name other text with --dataset; `--dataset docstrings` is always there")
        return
    yield Line("ok", f"text {name}: {blocks.n_counted:,} tokens")
    yield from _measure(subject, sae, blocks, hookpoint)


def _describe(sae: SparseAutoencoder, path: str) -> Iterator[Line]:
    from sae.files import find

    config = sae.config_dict()
    yield Line(
        "ok",
        f"'{path}': architecture {sae.architecture}, format {find(path).format}, width {sae.n_latents:,} "
        f"on {sae.d_in:,} dimensions",
    )
    k = config.get("k")
    rest = {name: value for name, value in config.items() if name not in {"d_in", "n_latents", "k"}}
    yield Line("ok", "L0 setting: " + (f"k = {k}" if k is not None else "none") + f"; config: {_pairs(rest)}")
    metadata = {name: value for name, value in vars(sae.metadata).items() if value not in (None, {}, [])}
    if metadata:
        yield Line("ok", f"metadata: {_pairs(metadata)}")
    else:
        yield Line("warn", "metadata: none", "name --model, --hookpoint and --dataset wherever this SAE is used")


def _tokenizer(subject: SubjectModel) -> str:
    """Whether texts begin with a BOS token is what most often sets two tools apart."""
    bos = f"puts {subject.tokenizer.bos_token!r} before a text" if subject.bos_id is not None else "puts no BOS token"
    return f"tokenizer of {len(subject.tokenizer):,} tokens, {bos}"


def _text(subject: SubjectModel, metadata: SAEMetadata, name: str, column: str | None) -> TokenBlocks:
    """A few contexts of text, past the documents that the SAE was trained on where that is known.

    Raises:
        UserError: no text, or too little.
    """
    from itertools import islice

    from autointerp.collect.corpus import Where, documents
    from autointerp.collect.tokens import pack
    from autointerp.errors import UserError

    longest = getattr(subject.model.config, "max_position_embeddings", None) or CONTEXT_LENGTH
    length = min(CONTEXT_LENGTH, int(longest))
    trained = metadata.extra.get("n_documents", 0) if metadata.dataset == name else 0
    skip = trained if isinstance(trained, int) and 0 < trained <= SKIPPABLE else 0

    def blocks(first: int) -> TokenBlocks:
        texts = documents(name, seed=metadata.seed or 0, where=Where(column))
        return pack(
            subject, islice(texts, first, None), n_tokens=CONTEXTS * CONTEXT_LENGTH, context_length=length,
            skip_first=1 if metadata.skip_first is None else metadata.skip_first, source=f"'{name}'",
        )  # fmt: skip

    try:
        return blocks(skip)
    except UserError:
        if not skip:
            raise
        # Training took all there is; a wrong model shows on seen text as well.
        return blocks(0)


def _measure(subject: SubjectModel, sae: SparseAutoencoder, blocks: TokenBlocks, hookpoint: str) -> Iterator[Line]:
    import numpy as np

    from autointerp.pipeline.metrics import reconstruction

    try:
        with np.errstate(all="ignore"):
            measured = reconstruction(subject, sae, blocks, hookpoint)
    except Exception as error:  # most often the width: the SAE is of another model
        yield Line("FAIL", said(error), CAUSES)
        return
    recorded = sae.metadata.metrics
    for name, label, digits in (("fvu", "FVU", 3), ("l0", "L0", 1)):
        value, low, high, n = measured[name]
        text = f"{label} {value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}] on {n:,} tokens"
        expected = recorded.get(name)
        if not isinstance(expected, int | float) or not math.isfinite(expected):
            poor = name == "fvu" and not value <= POOR_FVU  # NaN is poor too
            remedy = f"more than {POOR_FVU} of the variance is lost; {CAUSES}" if poor else ""
            yield Line("warn" if poor else "ok", f"{text}; the metadata records none", remedy)
            continue
        allowed = max(FVU_LEAST, FVU_SHARE * abs(expected)) if name == "fvu" else L0_SHARE * abs(expected)
        fits = abs(value - expected) <= allowed
        text += f"; recorded {expected:.{digits}f}, allowed difference {allowed:.{digits}f}"
        yield Line("ok", text) if fits else Line("FAIL", text, CAUSES)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_short(value)}" for name, value in values.items()) or "none"


def _short(value: Any) -> str:
    """Nested metadata of foreign files can be pages long; an issue needs its beginning."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + _pairs(dict(list(value.items())[:8])) + ("..." if len(value) > 8 else "") + "}"
    text = str(value)
    return text if len(text) <= 120 else text[:117] + "..."
